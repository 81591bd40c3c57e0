"""Names on the hub, its answers and refusals."""

import json

import pytest

from butterfly_core.errors import ConfigError, SourceError
from butterfly_weights.addresses import HubName, parse_hub_name
from butterfly_weights.errors import AccessDenied, NotFound, TransientFailure
from butterfly_weights.http_answers import Refusal
from butterfly_weights.hub_answers import error_of_hub, parse_model

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("org/name", "org/name", "main"),
        ("hf://org/name", "org/name", "main"),
        ("org/na.me-1_b@v1.0", "org/na.me-1_b", "v1.0"),
        ("hf://org/name@refs/pr/1", "org/name", "refs/pr/1"),
        (f"org/name@{COMMIT}", "org/name", COMMIT),
    ],
)
def test_a_name_of_the_hub_is_read(text: str, repo: str, revision: str) -> None:
    name = parse_hub_name(text)

    assert (name.repo, name.revision) == (repo, revision)
    assert name.commit == (COMMIT if revision == COMMIT else None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "a/b/c",
        "../x",
        "a/..",
        "a/b@../c",
        "a/b@",
        "a/b@c d",
        "hf:///b",
        "s3://a/b",
        "a/b?c",
        "a/b#c",
        "ä/b",
        f"a/{'b' * 200}",
        f"a/b@{'c' * 300}",
    ],
)
def test_what_is_no_name_of_the_hub_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="org/name or org/name@revision"):
        parse_hub_name(text)


def answer(**fields: object) -> bytes:
    sound = {"sha": COMMIT, "siblings": [{"rfilename": "config.json", "size": None}]}
    return json.dumps(sound | fields).encode()


def test_an_answer_names_the_commit_and_its_files() -> None:
    model = parse_model(answer(private=True), "the answer")

    assert model.commit == COMMIT
    assert model.files == {"config.json"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<html>", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not an object"),
        (answer(sha=None), "no commit"),
        (answer(sha="main"), "no commit"),
        (answer(sha="../" + COMMIT), "no commit"),
        (answer(siblings=None), "no files"),
        (answer(siblings=["x"]), "without a name"),
        (answer(siblings=[{}]), "without a name"),
        (answer(siblings=[{"rfilename": "../../x"}]), "plain file name"),
        (b'{"sha": "a", "sha": "b"}', "duplicate keys"),
    ],
)
def test_any_other_answer_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(SourceError, match=f"{says}.*is this a Hugging Face hub"):
        parse_model(data, "the answer")


@pytest.mark.parametrize(
    ("status", "code", "has_token", "kind", "says"),
    [
        (404, "EntryNotFound", True, NotFound, "has no such file"),
        (404, "RevisionNotFound", True, NotFound, "no revision 'v1'"),
        (401, "RepoNotFound", False, NotFound, "private.*set HF_TOKEN"),
        (401, "", False, NotFound, "private.*set HF_TOKEN"),
        (401, "", True, AccessDenied, "does not accept the token"),
        (403, "GatedRepo", True, AccessDenied, "accept its conditions at http://hub/org/m"),
        (401, "GatedRepo", False, AccessDenied, "set HF_TOKEN"),
        (403, "", True, AccessDenied, "fine-grained"),
        (404, "", True, NotFound, "source_path"),
        (429, "", True, TransientFailure, "429"),
        (503, "", True, TransientFailure, "503"),
        (451, "", True, SourceError, "451"),
    ],
)
def test_a_refusal_says_what_to_do(
    status: int, code: str, has_token: bool, kind: type[Exception], says: str
) -> None:
    refusal = Refusal(status, "", {"x-error-code": code, "x-error-message": "why\n\x1b[2J" * 99})

    error = error_of_hub(
        refusal,
        "GET x",
        name=HubName("org/m", "v1"),
        endpoint="http://hub",
        who="me",
        has_token=has_token,
    )

    assert type(error) is kind
    assert str(error).isprintable()
    with pytest.raises(kind, match=says):
        raise error
