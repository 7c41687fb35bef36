"""Type hints as a schema, for what is no setting: values of strangers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from fedray.schema import Schema, within
from fedray.types import FedrayError


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    inner: Inner
    more: Mapping[str, Any]
    share: float = 0.5


def test_a_key_without_a_default_must_be_there() -> None:
    read = Schema(Outer).read
    assert read({"inner": {"size": 1}, "more": {"a": [None, {}]}}) == Outer(Inner(1), {"a": [None, {}]})
    for values, says in (
        ({"inner": {"size": 1}}, "more is missing"),
        ({"inner": {}, "more": {}}, "inner.size is missing"),
        ({"share": 1}, "inner, more are missing"),
        ({"inner": None, "more": {}}, "inner must be a setting of its own, got null"),
        ({"inner": {"size": 1}, "more": []}, "more must be a mapping of names"),
        ({"inner": {"size": 1}, "more": {}, "share": 10**400}, "share is too large a number"),
    ):
        with pytest.raises(FedrayError, match=says):
            read(values)


@dataclass(frozen=True)
class Shape:
    name: str = field(default="", init=False)


@dataclass(frozen=True)
class Point(Shape):
    name: str = field(default="point", init=False)


@dataclass(frozen=True)
class Box(Shape):
    name: str = field(default="box", init=False)
    width: int = within(1, 1, 9)
    label: str | None = None


@dataclass(frozen=True)
class Ball(Shape):
    name: str = field(default="ball", init=False)
    radius: float = 1.0
    width: float = 0.0


@dataclass(frozen=True)
class Drawing:
    shape: Shape = field(default_factory=Box)
    scale: int = 1


KINDS = {Shape: {"point": Point, "box": Box, "ball": Ball}}
DRAWING = Schema(Drawing, kinds=KINDS)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ("point", Point()),
        ("box", Box()),
        ({"name": "box"}, Box()),
        ({"name": "box", "width": 3, "label": "x"}, Box(3, "x")),
        ({"width": 3, "name": "ball"}, Ball(width=3.0)),
        (Box(3), Box(3)),
        (Point(), Point()),
    ],
)
def test_a_name_chooses_the_kind(value: Any, shape: Shape) -> None:
    read = DRAWING.read({"shape": value, "scale": 2})
    assert read == Drawing(shape, 2) and type(read.shape) is type(shape)
    assert DRAWING.read(read) == read
    assert DRAWING.read({}) == Drawing(Box())


def test_what_names_a_kind_is_left_as_it_was() -> None:
    given = {"name": "box", "width": 3}
    DRAWING.read({"shape": given})
    assert given == {"name": "box", "width": 3}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("bxo", r"unknown shape 'bxo' \(did you mean box\?\)"),
        ({"name": "square"}, "unknown shape 'square'.*point.*box.*ball"),
        (3, "unknown shape '?3"),
        ({"width": 3}, "shape.name is missing: choose one of point, box, ball"),
        ({"name": "point", "width": 3}, "shape.width belongs to shape=box or ball, not to point"),
        ({"name": "box", "radius": 3}, "shape.radius belongs to shape=ball, not to box: leave it out, or choose that"),
        ({"name": "box", "colour": 3}, "unknown setting 'shape.colour'"),
        ({"name": "box", "widht": 3}, "unknown setting 'shape.widht': did you mean shape.width"),
        ({"name": "box", "width": 30}, "shape.width must be from 1 to 9, got 30"),
        ({"name": "box", "width": 0.5}, "shape.width must be a whole number, got 0.5"),
        ({"name": "ball", "width": "x"}, "shape.width must be a number, got 'x'"),
        (Box(30), "shape.width must be from 1 to 9, got 30"),
    ],
)
def test_a_kind_that_cannot_be_meant(value: Any, says: str) -> None:
    with pytest.raises(FedrayError, match=says) as error:
        DRAWING.read({"shape": value})
    assert "\n" not in str(error.value)


def test_null_chooses_no_kind() -> None:
    with pytest.raises(FedrayError, match="shape"):
        DRAWING.read({"shape": None})


def test_kinds_are_known_by_all_their_names() -> None:
    assert DRAWING.names == ("shape", "shape.name", "shape.width", "shape.label", "shape.radius", "scale")
    assert DRAWING.hint("shape") is Shape and DRAWING.hint("shape.radius") is float and DRAWING.hint("scale") is int
    assert DRAWING.hint("shape.label") is str and DRAWING.hint("shape.colour") is None
    assert DRAWING.with_keys({"x": ("y",)}).kinds == KINDS


def test_a_class_is_no_kind_unless_a_schema_says_so() -> None:
    assert Schema(Drawing).names == ("shape", "shape.name", "scale")
    with pytest.raises(FedrayError, match=r"unknown setting 'shape\.width'"):
        Schema(Drawing).read({"shape": {"width": 3}})
