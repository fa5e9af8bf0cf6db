"""Keep passwords and tokens out of everything that is printed or logged."""

import os
import re

# Environment variables with these names hold secrets.
SECRET = re.compile(r"TOKEN($|_)|KEY($|_)|PASSWORD|PASSWD|SECRET|CREDENTIAL|CONNECTION_STRING", re.IGNORECASE)
# Shorter values, such as "1" or "false", would be cut out of ordinary words.
SHORTEST_SECRET = 8


def redacted(text: str) -> str:
    """Return the text without credentials in URIs and without secrets from the environment."""
    by_name = {value for name, value in os.environ.items() if SECRET.search(name)}
    credentials = [re.match(r"[\w+.-]+://(\S+)@", value) for value in os.environ.values()]
    secrets = by_name | {match[1] for match in credentials if match}
    # The longest first, because one secret can contain another.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return re.sub(r"://[^/\s'\"]*@", "://", text)


def without_secrets(uri: str) -> str:
    """Return a URI without user name, password and query, any of which can hold a secret."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
