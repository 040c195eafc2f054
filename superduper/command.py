"""What a command is, and how one is made: checked once, frozen, with its place in the REST API."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from superduper.errors import InvalidInput
from superduper.names import check_collection, check_keys, check_name, check_path

Kind = Literal["function", "model", "loss", "metric", "trainer", "optimizer", "policy", "encoder"]
PLURALS: dict[str, str] = {
    "function": "functions",
    "model": "models",
    "loss": "losses",
    "metric": "metrics",
    "trainer": "trainers",
    "optimizer": "optimizers",
    "policy": "policies",
    "encoder": "encoders",
}
PLURALS_OF_ALL = {**PLURALS, "imputation": "imputations"}
Role = Literal["reader", "writer", "trainer", "admin"]


Name = Annotated[str, AfterValidator(check_name)]
CollectionName = Annotated[str, AfterValidator(check_collection)]
Path = Annotated[str, AfterValidator(check_path)]
Keys = Annotated[str | tuple[str, ...], AfterValidator(check_keys)]
Document = dict[str, Any]
Version = Annotated[int, Field(ge=1)]
Limit = Annotated[int, Field(ge=1, le=1000)]


@dataclass(frozen=True)
class Route:
    """A command's place in the REST API, and the least role that may use it.

    What takes long tries out code in a child process, or touches as many documents as there are.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    role: Role = "reader"
    status: int = 200
    takes_long: bool = False


class Command(BaseModel):
    """One request. Fields named in the route's path come from there, others from body or query."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    route: ClassVar[Route]


COLLECTION = "/v1/collections/{collection}"


class OnCollection(Command):
    """A command about one collection."""

    collection: CollectionName


def words_of(command: type[BaseModel]) -> dict[str, str]:
    """The word that stands for `{kinds}` in a command's path, for each kind that it takes."""
    return {
        kind: PLURALS_OF_ALL[kind] for kind in get_args(command.model_fields["kind"].annotation)
    }


C = TypeVar("C", bound=Command)


def build(command: type[C], **fields: Any) -> C:
    """A checked command.

    Raises InvalidInput that names the first wrong field.
    """
    try:
        return command(**fields)
    except ValidationError as error:
        raise InvalidInput(explain(error, command.model_fields)) from error


def explain(error: ValidationError, known: Iterable[str] = ()) -> str:
    """The first problem of a validation error in one line, without echoing the input.

    For an argument that is none of those known, the one that is meant is named.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    # Of a number that may be something else, pydantic names the branch as well.
    where = ".".join(str(part) for part in first["loc"][:4] if part != "constrained-float")
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        meant = get_close_matches(where, known, 1)
        text = "there is no such argument" + "".join(f"; is {each!r} meant?" for each in meant)
    return f"{where}: {text}"[:400] if where else text[:400]
