"""Three processes that share the messages of a route: `mqttapi run examples.workers:app`."""

from pydantic import BaseModel

from mqttapi import App


class Image(BaseModel):
    width: int
    height: int


app = App("cameras")


@app.topic("cameras/<camera_id>/images", shared=True, workers=3)
async def analyse(camera_id: str, image: Image) -> None:
    print(f"worker {app.worker.slot}: {image.width} × {image.height} from {camera_id}", flush=True)


@app.topic("cameras/<camera_id>/state")
async def state(camera_id: str, payload: str) -> None:
    print(f"worker {app.worker.slot}: {camera_id} is {payload}", flush=True)
