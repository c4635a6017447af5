"""The vocabulary of an MLX (or any Hugging Face) model folder."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from autospec.catalog.model import Vocabulary
from autospec.errors import ModelFileError

__all__ = ["read_json", "read_tokens", "vocabulary_of"]

_FIRST_CHECKED_ID: Final = 5
_BLOCK: Final = 8192
# More than any vocabulary; a damaged id ends here.
_MAX_TOKENS: Final = 1 << 22


def vocabulary_of(folder: Path, config: dict[str, Any]) -> Vocabulary | None:
    """Read the vocabulary's fingerprint.

    Args:
        folder: The model's folder.
        config: Its ``config.json``.

    Returns:
        ``None`` where there is no ``tokenizer.json``.

    Raises:
        ModelFileError: ``tokenizer.json`` is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    document = read_json(path)
    tokens = _texts(path, document)
    settings = _optional(folder / "tokenizer_config.json")
    ids = {text: i for i, text in enumerate(tokens)}
    encoded = [len(t).to_bytes(8, "little") + t for t in tokens]
    edges = [i for i in (_FIRST_CHECKED_ID, *range(_BLOCK, len(tokens) + 1, _BLOCK)) if i <= len(tokens)]
    model = document.get("model")
    return Vocabulary(
        kind=str(model.get("type") or "") if isinstance(model, dict) else "",
        size=len(tokens),
        digest=hashlib.sha256(b"".join(encoded)).hexdigest(),
        blocks=tuple(hashlib.sha256(b"".join(encoded[a:b])).hexdigest()[:16] for a, b in pairwise(edges)),
        bos=_special("bos", settings, config, ids),
        eos=_special("eos", settings, config, ids),
        add_bos=settings.get("add_bos_token") is True,
        add_eos=settings.get("add_eos_token") is True,
    )


def read_tokens(folder: Path) -> list[bytes]:
    """Read the text of every token, in order of the ids; an id that nothing has is empty.

    Args:
        folder: The model's folder.

    Raises:
        ModelFileError: ``tokenizer.json`` is missing or damaged.
    """
    path = folder / "tokenizer.json"
    return _texts(path, read_json(path))


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that must hold one JSON object.

    Args:
        path: The file.

    Raises:
        ModelFileError: It does not, or cannot be read.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is damaged: it is not JSON.", "Download it again.") from error
    if not isinstance(document, dict):
        raise ModelFileError(f"{path} is damaged: it does not hold a JSON object.", "Download it again.")
    return document


def _texts(path: Path, document: dict[str, Any]) -> list[bytes]:
    model = document.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    texts: dict[int, str] = {}
    if isinstance(vocab, dict):
        texts = {i: text for text, i in vocab.items() if isinstance(i, int)}
    elif isinstance(vocab, list):
        # Unigram: [text, score] in the order of the ids.
        texts = {i: str(e[0]) if isinstance(e, list) and e else "" for i, e in enumerate(vocab)}
    added = document.get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            texts[entry["id"]] = str(entry.get("content", ""))
    if not texts:
        raise ModelFileError(f"{path} is damaged: it has no tokens.", "Download it again.")
    if min(texts) < 0 or max(texts) >= _MAX_TOKENS:
        raise ModelFileError(f"{path} is damaged: it has impossible token ids.", "Download it again.")
    return [texts.get(i, "").encode("utf-8", "surrogatepass") for i in range(max(texts) + 1)]


def _special(name: str, settings: dict[str, Any], config: dict[str, Any], ids: dict[bytes, int]) -> int:
    token = settings.get(f"{name}_token")
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and (found := ids.get(text.encode("utf-8", "surrogatepass"))) is not None:
        return found
    number = config.get(f"{name}_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return number if isinstance(number, int) else -1


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
