"""Messages: JSON in and out, and errors of one line in the shape of the route's protocol."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import numpy as np
from fastapi import Response

FLOATS_AT_ONCE = 65536  # formatting holds the interpreter lock: release it between chunks
# Parsing holds the lock as well, in any thread. Empty lists take longest for their bytes.
MAX_CONTAINERS = 10_000
# A string, or an unterminated one up to the end: every quote matches, so the search is linear.
STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)


class RequestError(Exception):
    """An error that is answered with a status of 4xx or 503 and one line on what to do."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "invalid_input",
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        """`retry_after`: seconds; `close`: close the connection after the answer."""
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.retry_after, self.close = retry_after, close


def json_response(content: Any, status: int = 200) -> Response:
    """ASCII JSON, so that any text of a client can be encoded."""
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")


def error_response(error: RequestError, path: str) -> Response:
    """{"error": text} of the Open Inference Protocol under /v2, OpenAI's error object elsewhere."""
    message = " ".join(error.message.split())[:500]
    content: Any = message
    if not path.startswith("/v2"):
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        kind = "rate_limit_error" if error.status == 429 else kind
        content = {"message": message, "type": kind, "code": error.code}
    response = json_response({"error": content}, error.status)
    if error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    if error.close:
        response.headers["connection"] = "close"
    return response


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request body; RequestError for anything else, NaN and Infinity
    included.
    """
    if containers(body) > MAX_CONTAINERS:
        reason = f"the body has more than {MAX_CONTAINERS} lists and objects"
        raise RequestError(400, reason, "invalid_json")
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise RequestError(400, "the body is JSON nested too deeply", "invalid_json") from error
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}", "invalid_json") from error
    if not isinstance(value, dict):
        got = type(value).__name__
        raise RequestError(400, f"the body is a JSON {got}, expected an object", "invalid_json")
    return value


def containers(body: bytes) -> int:
    """Number of lists and objects in JSON; exact where it is above MAX_CONTAINERS."""
    count = body.count(b"[") + body.count(b"{")
    if count <= MAX_CONTAINERS:
        return count
    body = STRINGS.sub(b"", body)  # brackets in texts are no containers
    return body.count(b"[") + body.count(b"{")


def floats(values: np.ndarray[Any, Any]) -> str:
    """float32 values as JSON numbers and commas; nine digits restore a float32 exactly.

    Raises ArithmeticError for NaN and infinities, which JSON cannot hold.
    """
    flat = values.reshape(-1)
    if not np.isfinite(flat).all():
        raise ArithmeticError("the model's output has NaN or infinity")
    parts = []
    for start in range(0, flat.size, FLOATS_AT_ONCE):
        chunk = flat[start : start + FLOATS_AT_ONCE].tolist()
        parts.append(",".join(["%.9g"] * len(chunk)) % tuple(chunk))
    return ",".join(parts)


def shown(value: Any) -> str:
    """A client's value, shortened and escaped for an error message."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return ascii(value[:80]) if isinstance(value, str) else ascii(value)[:80]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")
