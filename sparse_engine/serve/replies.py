"""What goes over the wire: JSON in, JSON out, and one-line refusals in the shape of the route."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import numpy as np
from fastapi import Response

FLOATS_AT_ONCE = 65536  # formatting holds the interpreter lock: give it back now and then
# Parsing holds the lock as well, in any thread. Empty lists are what takes longest for its bytes.
MAX_CONTAINERS = 10_000
# A string, or what is one until the end: every quote matches, so that the search is linear.
STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)


class Refusal(Exception):
    """A request that is answered with a 4xx or 503 and one line that says what to do."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "invalid_input",
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        """`close`: the connection ends with the answer."""
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.retry_after, self.close = retry_after, close


def json_response(content: Any, status: int = 200) -> Response:
    """ASCII JSON, so that nothing a client sent can fail to encode."""
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")


def error_response(refusal: Refusal, path: str) -> Response:
    """Under /v2 {"error": text}, as the Open Inference Protocol has it; elsewhere OpenAI's shape."""
    message = " ".join(refusal.message.split())[:500]
    error: Any = message
    if not path.startswith("/v2"):
        kind = "invalid_request_error" if refusal.status < 500 else "server_error"
        kind = "rate_limit_error" if refusal.status == 429 else kind
        error = {"message": message, "type": kind, "code": refusal.code}
    response = json_response({"error": error}, refusal.status)
    if refusal.retry_after is not None:
        response.headers["retry-after"] = str(refusal.retry_after)
    if refusal.close:
        response.headers["connection"] = "close"
    return response


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request body; Refusal for anything else, NaN and Infinity included."""
    if containers(body) > MAX_CONTAINERS:
        reason = f"the body has more than {MAX_CONTAINERS} lists and objects"
        raise Refusal(400, reason, "invalid_json")
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise Refusal(400, "the body is JSON nested too deeply", "invalid_json") from error
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}", "invalid_json") from error
    if not isinstance(value, dict):
        got = type(value).__name__
        raise Refusal(400, f"the body is a JSON {got}, expected an object", "invalid_json")
    return value


def containers(body: bytes) -> int:
    """Number of lists and objects in JSON; exact where it is above MAX_CONTAINERS."""
    count = body.count(b"[") + body.count(b"{")
    if count <= MAX_CONTAINERS:
        return count
    body = STRINGS.sub(b"", body)  # brackets in texts are no containers
    return body.count(b"[") + body.count(b"{")


def floats(values: np.ndarray[Any, Any]) -> str:
    """float32 values as JSON numbers and commas; nine digits bring a float32 back exactly.

    Raises ArithmeticError for NaN and infinities, which JSON has no word for.
    """
    flat = values.reshape(-1)
    if not np.isfinite(flat).all():
        raise ArithmeticError("the model gave NaN or infinity")
    parts = []
    for start in range(0, flat.size, FLOATS_AT_ONCE):
        chunk = flat[start : start + FLOATS_AT_ONCE].tolist()
        parts.append(",".join(["%.9g"] * len(chunk)) % tuple(chunk))
    return ",".join(parts)


def shown(value: Any) -> str:
    """A client's value as an error message may repeat it."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return ascii(value[:80]) if isinstance(value, str) else ascii(value)[:80]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")
