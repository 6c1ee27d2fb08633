"""Secrets of addresses are neither shown nor stored."""

import pytest

from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.redact import is_redacted, redact

SECRET = "S3CR3T"
ADDRESSES = {
    f"https://user:{SECRET}@host/a.pt": "https://***@host/a.pt",
    f"https://{SECRET}@host:8080/a.pt": "https://***@host:8080/a.pt",
    f"s3://KEY:{SECRET}/with+slash@bucket/a": "s3://***@bucket/a",
    f"https://host/a.pt?X-Amz-Signature={SECRET}&b=1": "https://host/a.pt?***",
    f"https://host/a.pt?{SECRET}": "https://host/a.pt?***",
    f"https://u:p@host/a?sig={SECRET}#sha256=0a": "https://***@host/a?***#sha256=0a",
    f"https://host/a.pt#access_token={SECRET}": "https://host/a.pt#***",
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("text", ["{}", "item.weights='{}': no such file", "at ({}), {}; check it"])
def test_nothing_secret_is_left_in_a_text(address, text):
    expected = text.replace("{}", ADDRESSES[address])
    assert redact(text.replace("{}", address)) == expected
    assert redact(expected) == expected
    assert is_redacted(ADDRESSES[address])
    assert not is_redacted(address)


@pytest.mark.parametrize(
    "text",
    [
        "gs://bucket/run@2/a",
        "https://host:8080/owner/name@main",
        "owner/name@main",
        "did you mean 'lr'? optim.lr=1",
        "data/a b?.npy",
        f"https://host/a.pt#sha256={'a' * 64}",
    ],
)
def test_other_text_stays_as_it_is(text):
    assert redact(text) == text


def test_errors_and_reasons_of_libraries_have_no_secrets():
    for address in ADDRESSES:
        assert SECRET not in str(UserError(f"{address}: no such file; check it"))
        assert SECRET not in reason(OSError(f"404 for url: {address} (Caused by"))
    assert SECRET not in reason(OSError(f"pool(host='h'): url: /a.pt?token={SECRET} (Caused by"))
