"""Ask a model in token ids: clients of a llama.cpp server and of a child that reads token probabilities, and the child's side.

The llama.cpp API is llama-server's own (tools/server/README.md of llama.cpp, b11434). Builds that lack a part of it raise
`RequestError`, and prediction works without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from autospec.backends.openai_http import GREEDY, ChatClient, JsonClient
from autospec.backends.protocol import Proposal, Request, TokenAnswer
from autospec.errors import RequestError

__all__ = ["CANDIDATES", "HttpTokens", "Route", "TokenReader", "reading_routes", "serve"]

# llama.cpp compares with p-min a probability among ten tokens; see `Proposal`. MLX has no p-min, and the same number keeps both comparable.
CANDIDATES = 10
# Tokenizing is quick; a batch of some tens of tokens is one step of the model, which a slow disk may delay. Before it, the text
# that it stands behind may have to be computed: a slow machine takes a good part of a second for each token.
_SHORT_TIMEOUT_S = 120.0
_TOKEN_TIMEOUT_S = 0.5


class HttpTokens:
    """See `autospec.backends.protocol.Tokens`: over /apply-template, /tokenize and /completion."""

    def __init__(self, client: ChatClient) -> None:
        self._client = client
        # What `batch_ms` has left in the cache, before the batch; ``None`` after another request.
        self._cached: tuple[int, ...] | None = None

    def encode(self, request: Request) -> tuple[int, ...]:
        """See `Tokens`."""
        body: dict[str, Any] = {"messages": list(request.messages)}
        if request.tools:
            body["tools"] = list(request.tools)
        text = self._read(self._client.post("/apply-template", body, _SHORT_TIMEOUT_S)[0], "prompt", str)
        # As the chat endpoint does (tokenize_input_prompts with add_special and parse_special).
        return self._encoded(text, special=True)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """See `autospec.backends.registry.EncodesText`."""
        return self._encoded(text, special=False)

    def _encoded(self, text: str, *, special: bool) -> tuple[int, ...]:
        words = {"content": text, "add_special": special, "parse_special": special}
        return self._ids(self._client.post("/tokenize", words, _SHORT_TIMEOUT_S)[0])

    def generate(self, ids: Sequence[int], request: Request) -> TokenAnswer:
        """See `Tokens`."""
        self._cached = None
        sampling = GREEDY if request.temperature <= 0 else {"temperature": request.temperature}
        body: dict[str, Any] = {
            "prompt": list(ids),
            "n_predict": request.max_tokens,
            "seed": request.seed,
            "cache_prompt": False,
            "return_tokens": True,
            "id_slot": 0,
            **sampling,
        }
        if request.ignore_eos:
            body["ignore_eos"] = True
        answer, wall_ms = self._client.post("/completion", body, request.timeout_s)
        timings = self._read(answer, "timings", dict)
        return TokenAnswer(
            ids=self._ids(answer),
            ended=answer.get("stop_type") in {"eos", "word"},
            prompt_tokens=int(self._read(timings, "prompt_n", int)),
            prompt_ms=float(self._read(timings, "prompt_ms", (int, float))),
            predicted_ms=float(self._read(timings, "predicted_ms", (int, float))),
            wall_ms=wall_ms,
        )

    def propose(self, ids: Sequence[int], count: int) -> list[Proposal]:
        """See `Tokens`."""
        self._cached = None
        body = {
            "prompt": list(ids),
            "n_predict": count,
            "n_probs": CANDIDATES,
            "return_tokens": True,
            "cache_prompt": True,
            "id_slot": 0,
            **GREEDY,
        }
        answer, _ = self._client.post("/completion", body, _timeout_s(ids))
        try:
            # The server leaves the key out if every token ends within a character.
            entries = answer.get("completion_probabilities", ()) if isinstance(answer, Mapping) else ()
            return _proposals(self._ids(answer), [_proposal(e["top_logprobs"]) for e in entries])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RequestError(f"The server's probabilities cannot be read: {error!r}.") from error

    def batch_ms(self, ids: Sequence[int], extra: Sequence[int]) -> float:
        """See `Tokens`; a `RequestError` also says that the cache cannot be cut back to `ids`."""
        known, self._cached = self._cached, None
        # Behind the same tokens as before, the server cuts its cache back to them by itself: a pass less for each batch.
        if not ids or known != tuple(ids) or (found := self._batch(ids, extra))[0] != len(extra):
            if ids:
                self._batch(ids, ())
            found = self._batch(ids, extra)
        computed, taken_ms = found
        if computed != len(extra):
            raise RequestError(f"The server computed {computed} tokens instead of {len(extra)} new ones.")
        self._cached = tuple(ids)
        return taken_ms

    def _batch(self, ids: Sequence[int], extra: Sequence[int]) -> tuple[int, float]:
        """Tokens that the server computed for a prompt, and its milliseconds."""
        prompt = [*ids, *extra]
        body = {"prompt": prompt, "n_predict": 1, "cache_prompt": bool(ids), "id_slot": 0, **GREEDY}
        answer, _ = self._client.post("/completion", body, _timeout_s(prompt))
        timings = self._read(answer, "timings", dict)
        computed, taken_ms = (
            self._read(timings, "prompt_n", int),
            self._read(timings, "prompt_ms", (int, float)),
        )
        return int(computed), float(taken_ms)

    def _ids(self, answer: Any) -> tuple[int, ...]:
        found = self._read(answer, "tokens", list)
        if not all(isinstance(i, int) for i in found):
            raise RequestError("The server's token ids are not whole numbers.")
        return tuple(found)

    @staticmethod
    def _read(answer: Any, key: str, kind: type | tuple[type, ...]) -> Any:
        value = answer.get(key) if isinstance(answer, Mapping) else None
        if not isinstance(value, kind):
            raise RequestError(
                f"The server's answer has no {key}.", "This build does not take requests in token ids."
            )
        return value


def _timeout_s(ids: Sequence[int]) -> float:
    """For a request that computes all of a text, and a few tokens."""
    return _SHORT_TIMEOUT_S + _TOKEN_TIMEOUT_S * len(ids)


def _proposal(candidates: Sequence[Mapping[str, Any]]) -> Proposal:
    """The most likely token, its probability among ten tokens; the server's are over the whole vocabulary."""
    weights = [math.exp(float(c["logprob"])) for c in candidates[:CANDIDATES]]
    return Proposal(int(candidates[0]["id"]), weights[0] / math.fsum(weights))


def _proposals(ids: Sequence[int], told: Sequence[Proposal]) -> list[Proposal]:
    """One for each id, in order; the server gives no probability for a token that ends within a character."""
    proposals, k = [], 0
    for token in ids:
        if k < len(told) and told[k].token == token:
            proposals.append(told[k])
            k += 1
        else:
            proposals.append(Proposal(token, math.nan))
    return proposals


# For reading an answer of some hundred tokens with a large model; a CPU takes seconds for a token.
_READ_TIMEOUT_S = 600.0


class TokenReader:
    """A client for the routes of `reading_routes`; implements `autospec.predict.profile.Scorer`."""

    def __init__(self, client: JsonClient, name: str) -> None:
        self._client = client
        self._name = name

    def score(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> list[Proposal]:
        """The model's proposal at each token of a recorded answer, in one evaluation.

        Returns:
            One proposal for each token of the answer, in order.

        Raises:
            RequestError: The text does not fit the context, or the child refuses.
            ServerDiedError: The child ended.
        """
        body = {"prompt_ids": list(prompt_ids), "answer_ids": list(answer_ids)}
        return self._proposals("/score", body) if answer_ids else []

    def propose(self, ids: Sequence[int], count: int) -> list[Proposal]:
        """Continue `ids` greedily for at most `count` tokens; stops after an end of text. Raises as `score`."""
        return self._proposals("/propose", {"ids": list(ids), "count": count})

    def ask(
        self, path: str, body: Mapping[str, Any], timeout_s: float = _READ_TIMEOUT_S
    ) -> tuple[Mapping[str, Any], float]:
        """The decoded answer of a route, and its milliseconds. Raises as `score`."""
        answer, wall_ms = self._client.post(path, body, timeout_s)
        if not isinstance(answer, Mapping):
            raise RequestError(f"{self._name} answered {path} with something other than a JSON object.")
        return answer, wall_ms

    def _proposals(self, path: str, body: Mapping[str, Any]) -> list[Proposal]:
        answer, _ = self.ask(path, body)
        try:
            return [Proposal(int(token), float(p)) for token, p in answer["proposals"]]
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"The proposals of {self._name} cannot be read: {error!r}.") from error


Route = Callable[[dict[str, Any]], dict[str, Any]]


def serve(host: str, port: int, routes: Mapping[str, Route]) -> None:
    """Answer until killed: any ``GET`` shows that the process is ready, ``POST`` asks a route.

    A route is a function from the decoded body to the answer. The client gets what it raises as an error.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(HTTPStatus.OK, {"status": "ok"})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                self._answer(HTTPStatus.OK, routes[self.path](asked))
            except Exception as error:  # noqa: BLE001 - the client reports whatever a library raises
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"})

        def log_message(self, *_: object) -> None:
            """Keep requests out of the log."""

        def _answer(self, status: HTTPStatus, document: dict[str, Any]) -> None:
            body = json.dumps(_finite(document)).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer((host, port), Handler) as server:
        server.serve_forever()


def _finite(document: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in document.items()}


# (token, its probability among the ten most likely), as `Proposal`.
_Told = tuple[int, float]


def reading_routes(
    evaluate: Callable[[Sequence[int], int], Iterable[_Told]], ends: Callable[[int], bool]
) -> dict[str, Route]:
    """The routes ``/score`` and ``/propose`` of one model.

    `evaluate` gives the most likely token after ``ids[first]`` and each later one of ``ids``; `ends` tells whether a token ends a text.
    """

    def score(asked: dict[str, Any]) -> dict[str, Any]:
        """The model's proposal at each token of an answer, given the answer's own tokens before it."""
        prompt, answer = asked["prompt_ids"], asked["answer_ids"]
        return {"proposals": list(evaluate([*prompt, *answer[:-1]], len(prompt) - 1))}

    def propose(asked: dict[str, Any]) -> dict[str, Any]:
        """A greedy continuation."""
        ids = list(asked["ids"])
        proposals: list[_Told] = []
        while len(proposals) < asked["count"]:
            proposals += evaluate(ids, len(ids) - 1)
            ids.append(proposals[-1][0])
            if ends(ids[-1]):
                break
        return {"proposals": proposals}

    return {"/score": score, "/propose": propose}
