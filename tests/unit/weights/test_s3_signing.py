"""Signatures of S3 requests: one for all ranges of an object, for a minute."""

from botocore.credentials import Credentials

from butterfly_weights.s3 import Signer
from tests.unit.weights.fakes import Clock

URL = "https://bucket.s3.amazonaws.com/model.safetensors"


class Session:
    """The one method of botocore's session that is used."""

    def __init__(self) -> None:
        self.credentials = Credentials("AKEXAMPLE", "first", token="session")

    def get_credentials(self) -> Credentials:
        return self.credentials


def signed(signer: Signer, *, url: str = URL, first: int = 0) -> dict[str, str]:
    return signer.headers("GET", url, {"Range": f"bytes={first}-9"})


def test_ranges_of_an_object_share_a_signature_that_does_not_cover_them() -> None:
    signer = Signer(Session(), "eu-west-1", Clock())

    one, two = signed(signer), signed(signer, first=5)

    assert (one["Range"], two["Range"]) == ("bytes=0-9", "bytes=5-9")
    assert one["Authorization"] == two["Authorization"]
    covered = one["Authorization"].partition("SignedHeaders=")[2].partition(",")[0]
    assert covered == "host;x-amz-content-sha256;x-amz-date;x-amz-security-token"


def test_each_object_and_method_has_its_own() -> None:
    signer = Signer(Session(), "eu-west-1", Clock())

    asked = [("GET", URL), ("HEAD", URL), ("GET", f"{URL}2")]

    assert len({signer.headers(method, url, {})["Authorization"] for method, url in asked}) == 3


def test_a_signature_is_used_for_a_minute_and_only_with_its_credentials() -> None:
    clock, session = Clock(), Session()
    signer = Signer(session, "eu-west-1", clock)
    before = signed(signer)
    made = [signer._known["GET", URL]]

    clock.now += 59
    assert signed(signer) == before
    clock.now += 1
    signed(signer)
    made.append(signer._known["GET", URL])
    session.credentials.secret_key = "second"

    assert made[1][0] == made[0][0] + 60
    assert signed(signer)["Authorization"] != before["Authorization"]


def test_what_is_kept_has_a_limit() -> None:
    signer = Signer(Session(), "eu-west-1", Clock())

    for number in range(1001):
        signed(signer, url=f"{URL}{number}")

    assert len(signer._known) == 1
