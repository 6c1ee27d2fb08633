"""Secrets in addresses: passwords, tokens and signatures are neither shown nor stored."""

import re
from typing import Any

MARK = "***"
_END = r"(?=['\"),;:.\]}]*(?:[\s#]|$))"  # punctuation after an address stays
# "user:password@" or "token@", but not the port in "host:8080/name@version".
_USER = re.compile(r"(?<=://)(?!\[?[\w.-]*\]?:\d+/)([^\s/@]*:[^\s@]*|[^\s/@]+)@")
_QUERY = re.compile(rf"(://[^\s?#]*)\?[^\s#]+?{_END}")
_QUERY_ALONE = re.compile(rf"\?(?=[\w%.~-]+=)[^\s#]*?{_END}")  # some libraries leave out the host
_FRAGMENT = re.compile(rf"(://[^\s#]*)#(?!sha256=)[^\s#]+?{_END}")


def redact(text: str) -> str:
    """Returns a text with `MARK` in the place of what may be secret in the addresses in it.

    These are user and password, the query, and the fragment unless it is a SHA-256. An address that
    was redacted before stays as it is.
    """
    text = _USER.sub(f"{MARK}@", text)
    text = _QUERY.sub(rf"\1?{MARK}", text)
    text = _QUERY_ALONE.sub(f"?{MARK}", text)
    return _FRAGMENT.sub(rf"\1#{MARK}", text)


def redacted(values: Any) -> Any:
    """Returns nested dicts in which each text is redacted."""
    if isinstance(values, dict):
        return {key: redacted(value) for key, value in values.items()}
    return redact(values) if isinstance(values, str) else values


def is_redacted(address: str) -> bool:
    """Returns whether an address lacks its secrets, so that nothing can be read from it."""
    return "://" in address and MARK in address and redact(address) == address
