"""What the Hugging Face hub's answers mean. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from butterfly_core.errors import ModelError, SourceError
from butterfly_weights.addresses import HubName, is_commit
from butterfly_weights.errors import AccessDenied, NotFound
from butterfly_weights.http_answers import Refusal, error_of
from butterfly_weights.safetensors_header import parse_json_object
from butterfly_weights.source import safe_name

_FILES_MAX = 100_000
_MESSAGE_CHARACTERS_MAX = 200


@dataclass(frozen=True, slots=True)
class HubModel:
    """The hub's answer about a model: which commit a revision is, and its files."""

    commit: str
    files: frozenset[str]


def parse_model(data: bytes, what: str) -> HubModel:
    """Read ``GET /api/models/{repo}/revision/{revision}``. Raises SourceError."""
    try:
        raw = parse_json_object(data, what)
        siblings = raw.get("siblings")
        if not isinstance(siblings, list) or len(siblings) > _FILES_MAX:
            raise ModelError(f"{what} lists no files")
        return HubModel(_commit_of(raw, what), frozenset(_file_of(s, what) for s in siblings))
    except ModelError as error:
        raise SourceError(f"{error}: is this a Hugging Face hub?") from None


def _commit_of(raw: Mapping[str, object], what: str) -> str:
    sha = raw.get("sha")
    if not isinstance(sha, str) or not is_commit(sha):
        raise ModelError(f"{what} names no commit")
    return sha


def _file_of(sibling: object, what: str) -> str:
    name = sibling.get("rfilename") if isinstance(sibling, Mapping) else None
    if not isinstance(name, str):
        raise ModelError(f"{what} lists a file without a name")
    return safe_name(name)


def error_of_hub(
    refusal: Refusal, what: str, *, name: HubName, endpoint: str, who: str, has_token: bool
) -> SourceError:
    """The error that a refusal of the hub means, and what to do."""
    code = refusal.headers.get("x-error-code", "")
    status = refusal.status
    plain = Refusal(status, f"HTTP {status}", refusal.headers)
    if status not in (401, 403, 404, 410):
        return error_of(plain, what, who=who, advice_of={})
    login = "" if has_token else "set HF_TOKEN (or hf auth login) and "
    said = f"{what}: {code or plain.code}{_told(refusal)} [{who}]"
    if code == "EntryNotFound":
        return NotFound(f"{said}: {name} has no such file")
    if code == "RevisionNotFound":
        return NotFound(
            f"{said}: {name.repo} has no revision {name.revision!r}: name a branch, tag or commit"
        )
    if code == "GatedRepo":
        return AccessDenied(
            f"{said}: {name.repo} is gated: {login}accept its conditions at "
            f"{endpoint}/{name.repo} with the account of the token"
        )
    if code == "RepoNotFound" or (status == 401 and not has_token):
        return NotFound(
            f"{said}: {endpoint} has no model {name.repo}, or it is private: check [model] "
            f"source_path; if it is private, {login}let the token's account read it"
        )
    if status == 401:
        return AccessDenied(f"{said}: the hub does not accept the token: make a new one")
    if status == 403:
        return AccessDenied(
            f"{said}: the hub, or the store that it sends on to, does not let this node read "
            f"{name.repo}: {login}give a fine-grained token read access to its contents"
        )
    return NotFound(f"{said}: check [model] source_path")


def _told(refusal: Refusal) -> str:
    message = refusal.headers.get("x-error-message", "")
    shown = "".join(c for c in message if c.isprintable())[:_MESSAGE_CHARACTERS_MAX]
    return f" ({shown})" if shown else ""
