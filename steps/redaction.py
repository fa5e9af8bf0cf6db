"""Keep passwords and tokens out of what is printed and logged."""

import os
import re

# The names of variables whose values are told to nobody.
SECRET = re.compile(r"TOKEN($|_)|KEY($|_)|PASSWORD|PASSWD|SECRET|CREDENTIAL|CONNECTION_STRING", re.IGNORECASE)


def redacted(text: str) -> str:
    """A text without the user names and passwords of addresses, and without the environment's secrets."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return re.sub(r"://[^/\s'\"]*@", "://", text)


def without_secrets(uri: str) -> str:
    """An address without the user name and password that it may hold."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _secrets() -> set[str]:
    """The environment's secrets: values by the names of their variables, and what stands before the @ of addresses."""
    named = {value for name, value in os.environ.items() if SECRET.search(name)}
    inside = {found[1] for value in os.environ.values() if (found := re.match(r"[\w+.-]+://(\S+)@", value))}
    return {secret for secret in named | inside if len(secret) >= 8}
