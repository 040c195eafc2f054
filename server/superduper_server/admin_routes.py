"""What only administrators may ask for: tokens, and the audit log."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from superduper.command import Role, Route
from superduper.store.audit import shown
from superduper.store.mongo import database_errors
from superduper_server.backend import Backend
from superduper_server.routes import Endpoint
from superduper_server.tokens import Identity


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    route: ClassVar[Route]


class ListTokens(_Request):
    """The tokens there are, without their secrets."""

    route = Route("GET", "/v1/tokens", role="admin")


class CreateToken(_Request):
    """A new token; its text is in this answer and can never be shown again."""

    route = Route("POST", "/v1/tokens", role="admin", status=201)
    role: Role
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None
    rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    at_once: Annotated[int, Field(gt=0, le=100_000)] | None = None


class RevokeToken(_Request):
    """Make a token worthless: at once on this server, within two seconds on every other."""

    route = Route("DELETE", "/v1/tokens/{id}", role="admin")
    id: Annotated[str, Field(max_length=64)]


class ListAudit(_Request):
    """Who did what: the newest entries, or those after a number; in order."""

    route = Route("GET", "/v1/audit", role="admin")
    after: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


def admin_endpoints(backend: Backend) -> list[Endpoint]:
    """The endpoints for administrators."""
    tokens, audit = backend.tokens, backend.service.context.audit

    def list_tokens(command: ListTokens, identity: Identity) -> list[dict[str, Any]]:
        with database_errors():
            return tokens.list()

    def create_token(command: CreateToken, identity: Identity) -> dict[str, Any]:
        with database_errors():
            return tokens.create(**command.model_dump(), author=identity.id)

    def revoke_token(command: RevokeToken, identity: Identity) -> dict[str, Any]:
        with database_errors():
            revoked = tokens.revoke(command.id, author=identity.id)
        backend.group.tell(revoked=command.id)
        return revoked

    def list_audit(command: ListAudit, identity: Identity) -> list[dict[str, Any]]:
        if command.after is None:
            return [shown(entry) for entry in audit.last(command.limit)]
        return [shown(entry) for entry in audit.entries(command.after, command.limit)]

    return [
        _endpoint(ListAudit, list_audit),
        _endpoint(ListTokens, list_tokens),
        _endpoint(CreateToken, create_token),
        _endpoint(RevokeToken, revoke_token),
    ]


def _endpoint(command: type[_Request], handle: Any) -> Endpoint:
    route = command.route
    return Endpoint(
        command, route.method, route.path, route.role, route.status, handle, {}, handle.__name__
    )
