"""Request and response: what a handler returns goes to the Response Topic of the message."""

from pydantic import BaseModel

from mqttapi import NO_REPLY, App, Context

app = App("plant")


class Question(BaseModel):
    a: int
    b: int


class Answer(BaseModel):
    total: int


@app.topic("calculator/add")
async def add(question: Question) -> Answer:
    return Answer(total=question.a + question.b)


@app.topic("calculator/slowly")
async def slowly(context: Context, question: Question) -> object:
    await context.reply("working on it")
    await context.reply(Answer(total=question.a + question.b))
    return NO_REPLY  # else None would be an answer: an empty one
