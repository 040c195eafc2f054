"""Which model version answers for a path: asked of the database once a second, not per request."""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from superduper import commands
from superduper.command import build
from superduper.errors import InvalidInput, NotFound, NotReady, SuperduperError
from superduper.handlers import predictions
from superduper.handlers.context import Context
from superduper.service import Service
from superduper.serving.giving_way import giving_way
from superduper.store.component import Component
from superduper.store.mongo import database_errors
from superduper.store.traffic import traffic_id
from superduper_server.pool import Pool
from superduper_server.rivals import Rivals
from superduper_server.v2_format import Signature

logger = logging.getLogger(__name__)

FRESH_SECONDS = 1.0
STALE_SECONDS = 5.0
LOOKUP_SECONDS = 30.0
REMEMBERED = 10_000

MODEL_PATH = "/v1/collections/{collection}/models/{name}/predict"
MODEL_VERSION_PATH = "/v1/collections/{collection}/models/{name}/versions/{version}/predict"
IMPUTATION_PATH = "/v1/collections/{collection}/imputations/{name}/predict"
V2_PATH = "/v2/models/{model}/infer"
V2_VERSION_PATH = "/v2/models/{model}/versions/{version}/infer"
Asked = commands.Predict | commands.PredictImputation
TEMPLATES = (MODEL_PATH, MODEL_VERSION_PATH, IMPUTATION_PATH, V2_PATH, V2_VERSION_PATH)
_PATTERNS = [
    (path, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/?#%]+)", path))) for path in TEMPLATES
]


@dataclass(frozen=True)
class Place:
    """What a path asks for: its template and what fills it."""

    template: str
    collection: str
    name: str
    version: str | None = None
    model: str = ""
    """The name that the Open Inference Protocol has for it; empty in our own dialect."""

    @property
    def command(self) -> commands.Predict | commands.PredictImputation:
        """The command for it, without inputs.

        Raises NotFound or InvalidInput for what cannot be the name or version of anything.
        """
        if self.template == IMPUTATION_PATH:
            return build(
                commands.PredictImputation, collection=self.collection, name=self.name, inputs=[]
            )
        version = self.version
        if self.model and version is not None and not re.fullmatch("[1-9][0-9]{0,8}", version):
            raise InvalidInput(f"a version is a number from 1 on, not {version[:40]!r}")
        fields = {"collection": self.collection, "name": self.name, "version": version}
        try:
            return build(commands.Predict, **fields, inputs=[])
        except InvalidInput as error:
            if not self.model:
                raise
            raise NotFound(
                f"there is no model {self.model[:120]!r}: "
                "the name of a model is <collection>.<model>"
            ) from error


def place_of(template: str, fields: dict[str, str]) -> Place:
    """The place for a template and what fills it."""
    version, model = fields.get("version"), fields.get("model", "")
    if model:
        collection, _, name = model.rpartition(".")
        return Place(template, collection, name, version, model)
    return Place(template, fields["collection"], fields["name"], version)


@lru_cache(maxsize=4096)
def find_place(path: str) -> Place | None:
    """The place of a path that is written plainly; None for any other path."""
    for template, pattern in _PATTERNS:
        found = pattern.fullmatch(path)
        if found is not None:
            return place_of(template, found.groupdict())
    return None


@dataclass(frozen=True, eq=False)
class Target:
    """The model version that answers, and the version that is told."""

    component: Component
    version: int | None
    signature: Signature
    found_at: float
    rivals: Rivals | None = None
    """Other versions that get a share of what this one is asked."""

    @cached_property
    def reads_float32(self) -> bool:
        """Whether a list of floats and a vector of float32 are the same to the model."""
        return bool((self.component.details or {}).get("reads_float32"))


class Models:
    """The targets of this server's predictions; for the event loop's thread.

    A live version is asked for again after a second, while the known one goes on answering: the new
    one takes over when it is loaded, if the old one was.
    """

    def __init__(
        self, service: Service, pool: Pool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._context = service.context
        self._pool = pool
        self._clock = clock
        self._targets: OrderedDict[Place, Target] = OrderedDict()
        self._refreshing: dict[Place, asyncio.Task[Target]] = {}
        self._expired: set[Place] = set()
        """Where the known target was too old already when one began to ask again."""
        self._unloaded: set[str] = set()

    # What the protocol's repository says ------------------------------------------------------

    def mark(self, model: str, *, loaded: bool) -> None:
        """Note that a model of the Open Inference Protocol was loaded or unloaded by name."""
        if loaded:
            self._unloaded.discard(model)
        else:
            self._unloaded.add(model)

    def is_unloaded(self, model: str) -> bool:
        """Whether somebody has unloaded it."""
        return model in self._unloaded

    def check_loaded(self, place: Place) -> None:
        """Refuse what was unloaded.

        Raises NotReady.
        """
        if place.model and place.model in self._unloaded:
            raise NotReady(f"model {place.model!r} has been unloaded: load it first")

    # Finding ---------------------------------------------------------------------------------

    def forget(self) -> None:
        """Something has changed: ask the database again before the next prediction."""
        self._targets.clear()
        self._refreshing.clear()  # what is on its way may be from before the change
        self._expired.clear()

    def get_now(self, place: Place) -> Target | None:
        """The target if it is known; None if the database must be asked first."""
        target = self._targets.get(place)
        if target is None:
            return None
        age = self._clock() - target.found_at
        if age > FRESH_SECONDS:
            if age > STALE_SECONDS and place not in self._refreshing:
                self._expired.add(place)
            self._refresh(place)
        return None if place in self._expired else target

    def look_up(self, place: Place) -> "asyncio.Task[Target] | None":
        """The look-up after which `get_now` may know the target; None if it does."""
        return None if self.get_now(place) is not None else self._refresh(place)

    async def get(self, place: Place) -> Target:
        """The target.

        Raises NotFound if there is none, InvalidInput if there can be none.
        """
        self.check_loaded(place)
        known = self.get_now(place)
        return known if known is not None else await asyncio.shield(self._refresh(place))

    def _refresh(self, place: Place) -> "asyncio.Task[Target]":
        task = self._refreshing.get(place)
        if task is None:
            task = asyncio.create_task(self._find(place))
            self._refreshing[place] = task
            task.add_done_callback(lambda task: self._refreshed(place, task))
        return task

    def _refreshed(self, place: Place, task: "asyncio.Task[Target]") -> None:
        has_failed = task.cancelled() or task.exception() is not None
        if self._refreshing.get(place) is not task:
            return
        del self._refreshing[place]
        self._expired.discard(place)
        if has_failed:
            self._targets.pop(place, None)  # whoever asks next is told what is wrong
            return
        self._targets[place] = task.result()
        if len(self._targets) > REMEMBERED:
            self._targets.popitem(last=False)

    async def _find(self, place: Place) -> Target:
        command, known, hosts = place.command, self._targets.get(place), self._context.hosts
        began = self._clock()

        def ask() -> tuple[Target, list[Component]]:
            with giving_way, database_errors():
                self._context.tally.flush()
                component, version = predictions.find(self._context, command)
                signature = Signature.of(component.details)
                rivals = find_rivals(self._context, command, component.id)
            target = Target(component, version, signature, began, rivals)
            for each in _components(target):
                hosts.follow(each)
            is_in_use = known is not None and hosts.is_loaded(known.component.id)
            wanted = {each.id: each for each in _components(target)} if is_in_use else {}
            return target, [each for each in wanted.values() if not hosts.is_loaded(each.id)]

        found, cold = await self._pool.run(ask, seconds=LOOKUP_SECONDS)
        for each in cold:
            await self._warm(each)
            found = replace(found, found_at=self._clock())
        return found

    async def _warm(self, component: Component) -> None:
        try:
            await self._pool.run(
                lambda: self._context.hosts.load(component), seconds=LOOKUP_SECONDS
            )
        except SuperduperError as error:  # its own requests will be told the same
            logger.warning(
                "%s cannot be loaded: %s", component.id, error, extra={"event": "model.load"}
            )


def find_rivals(context: Context, command: Asked, live: str) -> Rivals | None:
    """The versions on trial beside the live one, if there are any. May block."""
    if isinstance(command, commands.Predict) and command.version is not None:
        return None
    kind = "model" if isinstance(command, commands.Predict) else "imputation"
    policy = context.traffic.get(traffic_id(command.collection, kind, command.name))
    if policy is None:
        return None

    def rival(side: str) -> Target | None:
        told = policy.get(side)
        if told is None:
            return None
        try:
            component, version = predictions.other_version(context, command, told["version"])
        except SuperduperError as error:
            logger.warning("no %s: %s", side, error, extra={"event": "traffic.rival"})
            return None
        signature = Signature.of(component.details)
        return None if component.id == live else Target(component, version, signature, 0.0)

    canary, shadow = policy.get("canary") or {}, policy.get("shadow") or {}
    return Rivals(
        (policy["_id"], policy["set_at"]),
        rival("canary"),
        canary.get("share", 0.0),
        rival("shadow"),
        shadow.get("share", 0.0),
        shadow.get("tolerance", 0.0),
    )


def _components(target: Target) -> list[Component]:
    rivals = target.rivals
    others = [] if rivals is None else [rivals.canary, rivals.shadow]
    return [each.component for each in (target, *others) if each is not None]
