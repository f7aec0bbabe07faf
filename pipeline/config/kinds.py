"""Blocks that come in kinds: a family, the kinds that have joined it, and the field that takes any of them.

A family is a direct subclass of `Kind`; a subclass of a family that says `kind: Literal["name"]` joins it by being defined, in
this package or in a lab's own file. So nothing lists the kinds, and what a kind can do stands on its class.
"""

from __future__ import annotations

from typing import Any, ClassVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, SerializeAsAny
from pydantic_core import PydanticKnownError

from pipeline.config.section import Section


class Kind(Section):
    """A block whose `kind` says which of its family it is."""

    kinds: ClassVar[dict[str, type[Any]]]
    """Of a family: name → the class that has it."""
    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if Kind in cls.__bases__:
            cls.kinds = {}
        for name in get_args(cls.model_fields["kind"].annotation):
            mine, other = (f"{each.__module__}.{each.__qualname__}" for each in (cls, cls.kinds.get(name, cls)))
            if mine != other:
                raise TypeError(f"{mine}: there is a kind {name!r} already, {other}")
            if missing := ", ".join(sorted(cls.__abstractmethods__)):  # known when it is read, not when it has been trained
                raise TypeError(f"{mine}: a kind of {cls.__bases__[0].__name__} defines {missing}")
            cls.kinds[name] = cls

    @classmethod
    def parse(cls, value: Any) -> Any:
        """A mapping as a block of the kind that it names; anything else as it is, for pydantic to refuse."""
        if not isinstance(value, dict):
            return value
        if (found := cls.kinds.get(str(value.get("kind")))) is None:
            names = ", ".join(f"'{name}'" for name in cls.kinds)
            context = {"discriminator": "'kind'", "tag": str(value.get("kind")), "expected_tags": names}
            raise PydanticKnownError("union_tag_invalid", context)
        return found.model_validate(value)


def kind_of(family: type[Kind]) -> tuple[Any, Any]:
    """What a field of a family is annotated with: `Annotated[Backbone, *kind_of(Backbone)]` takes a block of any kind that there
    is when it is read, and writes all of its keys."""
    serialized: Any = SerializeAsAny
    return serialized(), BeforeValidator(family.parse)


def blocks_in(annotation: Any, of_lists: bool = False) -> list[type[BaseModel]]:
    """The blocks that a field's annotation allows, all kinds of a family; with `of_lists` also as elements of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        is_family = Kind in annotation.__bases__
        return list(dict.fromkeys(annotation.kinds.values())) if is_family else [annotation]  # type: ignore[attr-defined]
    if get_origin(annotation) is None or (get_origin(annotation) in (tuple, list) and not of_lists):
        return []
    return [block for argument in get_args(annotation) for block in blocks_in(argument, of_lists)]
