"""Routers that are found by themselves: every module of `routers`, nested ones too."""

from mqttapi import App

app = App("plant", discover="examples.discovery.routers")
