"""Topics: their grammar, templates with named parts, and the tree that finds the filters a topic matches."""

from mqttapi.topics.converters import Constraint, Converter, register_converter
from mqttapi.topics.grammar import (
    covers,
    join,
    matches,
    overlaps,
    share,
    split_share,
    validate_filter,
    validate_topic,
)
from mqttapi.topics.template import TemplateParameter, TopicTemplate
from mqttapi.topics.tree import TopicCache, TopicTree

__all__ = [
    "Constraint",
    "Converter",
    "TemplateParameter",
    "TopicCache",
    "TopicTemplate",
    "TopicTree",
    "covers",
    "join",
    "matches",
    "overlaps",
    "register_converter",
    "share",
    "split_share",
    "validate_filter",
    "validate_topic",
]
