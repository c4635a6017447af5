"""Open the database; write and read measurements and recommendations; lock cells among machines.

Every call is one transaction that is durable when it returns. A kill or a power failure loses at most the current measurement.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from autospec.cells import Build, Cell, Hardware, PromptType
from autospec.drafting import Drafting
from autospec.errors import StorageUrlError, StoreError, install_line
from autospec.files import write_hint
from autospec.measure.launch_scatter import LaunchComparison
from autospec.measure.measurements import Measurement, Phase, Sample
from autospec.recommendations import Recommendation, StoredRecommendation
from autospec.store.compatibility import (
    ANY_DRAFTS,
    NEWEST_OVERALL,
    NEWEST_RECOMMENDATION,
    NEWEST_RECOMMENDATIONS,
    DraftFiles,
    Unread,
    understood,
)
from autospec.store.schema import (
    LAUNCH_COMPARISONS,
    LIVE_SAMPLES,
    MEASUREMENTS,
    OVERALL,
    RECOMMENDATIONS,
    SURVEYS,
    bring_up_to_date,
)

__all__ = [
    "CellLocks",
    "Store",
    "connect_args",
    "durable",
    "first_use",
    "open_store",
    "read_url",
]

_Value = TypeVar("_Value")

# Several processes share the file. A writer may wait for another's short transaction, never for a measurement.
_SQLITE_BUSY_TIMEOUT_S = 30.0
# For each address of a PostgreSQL; libpq waits for ever, psycopg for two minutes.
_CONNECT_TIMEOUT_S = 10
# A host that has vanished is noticed after 60 s of silence and three probes 20 s apart (documentation of PostgreSQL, 34.1.2).
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 60, "keepalives_interval": 20, "keepalives_count": 3}
_LIBPQ = frozenset({"psycopg", "psycopg2"})  # drivers that take these names
# About 20 MB of SQLite: months of one person's use, a day of a busy team's. Drift detection needs only the newest.
_KEPT_SAMPLES = 100_000
# Only the newest count: drivers and systems change without a new build.
_KEPT_COMPARISONS = 40


class Store:
    """The database behind one SQLAlchemy URL. Create it with `open_store`.

    A measurement is stored with the identity of its draft in `drafts`; measurements of a file that was replaced are not returned.
    """

    def __init__(self, engine: sa.Engine, tell: Callable[[str], None] = lambda _: None) -> None:
        self._engine = engine
        self._tell = tell
        self._unread = Unread()
        self.drafts: DraftFiles = ANY_DRAFTS

    @property
    def url(self) -> str:
        """The URL with its password, for Optuna's tables in the same database."""
        return self._engine.url.render_as_string(hide_password=False)

    def close(self) -> None:
        """Close all connections, and report how many rows were not understood."""
        self._engine.dispose()
        if sentence := self._unread.sentence:
            self._tell(sentence)
            self._unread = Unread()

    def add_measurement(self, measurement: Measurement) -> None:
        """Store one measurement."""
        self._insert(
            MEASUREMENTS,
            measurement.to_json() | {"draft_id": self.drafts.identity(measurement.compared) or None},
        )

    def measurements(
        self,
        cell_key: str,
        *,
        protocol: str | None = None,
        phase: Phase | None = None,
        since: float = 0.0,
    ) -> list[Measurement]:
        """Return the measurements of a cell since a time (epoch), oldest first, with today's paths of their drafts."""
        table = MEASUREMENTS
        query = sa.select(table).where(table.c.cell_key == cell_key, table.c.started_at >= since)
        if protocol is not None:
            query = query.where(table.c.protocol == protocol)
        if phase is not None:
            query = query.where(table.c.phase == str(phase))
        found = self._understood(query.order_by(table.c.id), _measurement, "measurement")
        return [m for stored, identity in found if (m := self._today(stored, identity)) is not None]

    def _today(self, measurement: Measurement, identity: str) -> Measurement | None:
        """The measurement with today's draft path; ``None`` if that path names another file now."""
        compared = self.drafts.today(measurement.compared, identity, measurement.started_at)
        if compared is None or compared == measurement.compared:
            return None if compared is None else measurement
        own = measurement.drafting if measurement.drafting.is_off else compared
        return replace(measurement, drafting=own, compared=compared)

    def add_survey(self, cell_key: str, protocol: str, kind: str, name: str, data: dict[str, Any]) -> None:
        """Store one input of prediction; readers see the newest of each name."""
        row = {"cell_key": cell_key, "protocol": protocol, "kind": kind, "name": name, "data": data}
        self._insert(SURVEYS, row)

    def surveys(self, cell_key: str, protocol: str, kind: str) -> dict[str, dict[str, Any]]:
        """Return name → data of all surveys of one kind of a cell, in the order they were first stored."""
        table = SURVEYS
        query = (
            sa.select(table.c.name, table.c.data)
            .where(table.c.cell_key == cell_key, table.c.protocol == protocol, table.c.kind == kind)
            .order_by(table.c.id)
        )
        # A damaged survey counts as missing: it can be measured again.
        return {row["name"]: row["data"] for row in self._rows(query) if isinstance(row["data"], dict)}

    def forget_surveys(self, cell_key: str) -> None:
        """Delete the surveys of a cell, recorded answers included."""
        with plain_errors(self._engine), self._engine.begin() as connection:
            connection.execute(sa.delete(SURVEYS).where(SURVEYS.c.cell_key == cell_key))

    def save_recommendation(
        self, recommendation: Recommendation, hardware: Hardware, cell: Cell | str
    ) -> None:
        """Store a recommendation; readers see the newest of each cell, older ones stay in the table."""
        key, prompt_type = cell.key if isinstance(cell, Cell) else cell, recommendation.prompt_type
        row = _answer_row(key, recommendation, hardware)
        row["prompt_type"] = None if prompt_type is None else str(prompt_type)
        self._insert(RECOMMENDATIONS, row)

    def recommendations(self, *, cell_keys: Sequence[str] | None = None) -> list[StoredRecommendation]:
        """Return the newest recommendation of every cell, or of these, in the order they were made."""
        table = RECOMMENDATIONS
        query = sa.select(table).where(table.c.id.in_(sa.text(NEWEST_RECOMMENDATIONS)))
        if cell_keys is not None:
            query = query.where(table.c.cell_key.in_(list(cell_keys)))
        return self._stored(query.order_by(table.c.id), "recommendation")

    def former_recommendations(self, cell_key: str) -> list[Recommendation]:
        """Return all recommendations of a cell but the newest, oldest first."""
        table = RECOMMENDATIONS
        of_cell = table.c.cell_key == cell_key
        newest = sa.select(sa.func.max(table.c.id)).where(of_cell).scalar_subquery()
        query = sa.select(table).where(of_cell, table.c.id < newest).order_by(table.c.id)
        return [s.recommendation for s in self._stored(query, "recommendation")]

    def save_overall(self, answer: Recommendation, hardware: Hardware, launch_key: str) -> None:
        """Store the answer for a mix of prompt types; readers see the newest of each `Cell.launch_key`."""
        self._insert(OVERALL, _answer_row(launch_key, answer, hardware))

    def overall_answers(self, launch_keys: Sequence[str] | None = None) -> list[StoredRecommendation]:
        """Return the newest answer of every launch key, or of these, in the order they were made."""
        query = sa.select(OVERALL).where(OVERALL.c.id.in_(sa.text(NEWEST_OVERALL)))
        if launch_keys is not None:
            query = query.where(OVERALL.c.cell_key.in_(list(launch_keys)))
        return self._stored(query.order_by(OVERALL.c.id), "overall answer")

    def _stored(self, query: sa.Select[Any], kind: str) -> list[StoredRecommendation]:
        return self._understood(query, StoredRecommendation.from_json, kind)

    def _understood(
        self, query: sa.Select[Any], read: Callable[[sa.RowMapping], _Value], kind: str
    ) -> list[_Value]:
        return understood(((row["id"], row) for row in self._rows(query)), read, self._unread, kind)

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.RowMapping]:
        with plain_errors(self._engine), self._engine.connect() as connection:
            return connection.execute(query).mappings().all()

    def _insert(self, table: sa.Table, *rows: dict[str, Any]) -> None:
        """Store all rows in one transaction."""
        if rows:
            with plain_errors(self._engine), self._engine.begin() as connection:
                connection.execute(sa.insert(table), rows)

    def add_samples(self, samples: Sequence[Sample]) -> None:
        """Store samples of live traffic, in one transaction."""
        rows = [
            {name: getattr(sample, name) for name in _SAMPLE}
            | {
                "prompt_type": None if sample.prompt_type is None else str(sample.prompt_type),
                "drafting_key": sample.drafting.key,
                "drafting": sample.drafting.to_json(),
            }
            for sample in samples
        ]
        self._insert(LIVE_SAMPLES, *rows)

    def prune_samples(self, keep: int = _KEPT_SAMPLES) -> None:
        """Delete all but about `keep` of the newest samples; gaps between ids make it fewer."""
        number = LIVE_SAMPLES.c.id
        with plain_errors(self._engine), self._engine.begin() as connection:
            newest = connection.execute(sa.select(sa.func.max(number))).scalar()
            if newest is not None:
                connection.execute(sa.delete(LIVE_SAMPLES).where(number <= newest - keep))

    def samples(
        self,
        *,
        since: float,
        model: str | None = None,
        backend: str | None = None,
        build: str | None = None,
        prompt_type: PromptType | None = None,
        drafting: Drafting | None = None,
    ) -> list[Sample]:
        """Return samples since a time (seconds since the epoch), oldest first; a filter of ``None`` passes all."""
        table = LIVE_SAMPLES
        wanted = {
            table.c.model: model,
            table.c.backend: backend,
            table.c.build: build,
            table.c.prompt_type: None if prompt_type is None else str(prompt_type),
            table.c.drafting_key: None if drafting is None else drafting.key,
        }
        query = sa.select(table).where(
            table.c.at >= since, *(column == value for column, value in wanted.items() if value is not None)
        )
        return self._understood(query.order_by(table.c.at, table.c.id), _sample, "sample")

    def add_launch_comparison(
        self, hardware_id: str, build: Build, model: str, comparison: LaunchComparison
    ) -> None:
        """Store a comparison of two launches; `model` is the main model with the user's arguments."""
        server = {
            "hardware_id": hardware_id,
            "backend": build.backend,
            "build": build.fingerprint or build.version,
            "model": model,
        }
        self._insert(LAUNCH_COMPARISONS, asdict(comparison) | server)

    def launch_comparisons(
        self, hardware_id: str, build: Build, model: str | None = None
    ) -> list[LaunchComparison]:
        """Return the newest launch comparisons on a machine with exactly this build, oldest first; of one model or of all."""
        table = LAUNCH_COMPARISONS
        query = sa.select(*(table.c[f.name] for f in fields(LaunchComparison))).where(
            _on_server(hardware_id, build)
        )
        if model is not None:
            query = query.where(table.c.model == model)
        query = query.order_by(table.c.id.desc()).limit(_KEPT_COMPARISONS)
        return [LaunchComparison(**row) for row in reversed(self._rows(query))]

    def compared_models(self, hardware_id: str, build: Build) -> list[str]:
        """Return the models that such comparisons were made with, the newest first."""
        table = LAUNCH_COMPARISONS
        query = sa.select(table.c.model).where(_on_server(hardware_id, build)).group_by(table.c.model)
        return [row["model"] for row in self._rows(query.order_by(sa.func.max(table.c.id).desc()))]

    def newest_recommendation(self) -> int:
        """Return the number of the newest recommendation; 0 without any."""
        with plain_errors(self._engine), self._engine.connect() as connection:
            return int(connection.execute(sa.text(NEWEST_RECOMMENDATION)).scalar() or 0)


def open_store(url: str, tell: Callable[[str], None] = lambda _: None) -> Store:
    """Open the database; create missing tables and update older ones.

    SQLite files use write-ahead logging, so that readers never wait for a writer. When the store closes, `tell` gets a sentence if
    rows were not understood.

    Raises:
        StorageUrlError: The URL is malformed.
        StoreError: The database cannot be reached or written, or its tables need a newer autospec.
    """
    parsed = read_url(url)
    sqlite_file = parsed.database if parsed.get_backend_name() == "sqlite" else None
    if sqlite_file and sqlite_file != ":memory:":
        try:
            Path(sqlite_file).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The folder of the database {sqlite_file} cannot be created: {error.strerror}.",
                write_hint(str(error)) or "Set another `storage` in the config.",
            ) from error
    try:
        # Pinged: a PostgreSQL that was started again has closed the connections that are kept.
        engine = sa.create_engine(parsed, connect_args=connect_args(parsed), pool_pre_ping=True)
    except (ImportError, sa.exc.ArgumentError) as error:
        raise StoreError(
            f"The storage {parsed.get_backend_name()} needs a driver that is not installed: {error}.",
            f"{install_line('postgres')} for PostgreSQL, or use SQLite.",
        ) from error
    durable(engine)
    if sqlite_file and sqlite_file != ":memory:":
        _follow_file(engine, Path(sqlite_file))
    with plain_errors(engine):
        if sqlite_file:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        with first_use(url):
            bring_up_to_date(engine)
    return Store(engine, tell)


def read_url(url: str) -> sa.URL:
    """Read a database's URL, without a connection.

    Raises:
        StorageUrlError: It is malformed, or SQLAlchemy does not know such a database.
    """
    hint = "Use an SQLAlchemy URL, e.g. sqlite:////home/me/autospec.db."
    try:
        parsed = make_url(url)
        with suppress(ImportError):  # a driver that is missing is told when it is needed
            parsed.get_dialect()
    except sa.exc.NoSuchModuleError as error:
        raise StorageUrlError(
            f"SQLAlchemy knows no database {parsed.drivername}, which the storage URL begins with.", hint
        ) from error
    except (sa.exc.ArgumentError, ValueError) as error:  # ValueError: the port is no number
        # Without the URL, which may hold a password.
        raise StorageUrlError("The storage URL is malformed.", hint) from error
    return parsed


def connect_args(url: str | sa.URL) -> dict[str, Any]:
    """Arguments of a database's driver: how long it waits for a file that is locked, or for a server that does not answer.

    What the URL says itself is left out.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return {"timeout": _SQLITE_BUSY_TIMEOUT_S}
    if parsed.get_driver_name() not in _LIBPQ:
        return {}
    limits = {"connect_timeout": _CONNECT_TIMEOUT_S, **_KEEPALIVES}
    return {name: value for name, value in limits.items() if name not in parsed.query}


def durable(engine: sa.Engine, platform: str = sys.platform) -> None:
    """Make SQLite use full sync on macOS: without it a power failure may lose committed data."""
    if platform == "darwin" and engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def full_sync(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA fullfsync=1")


def _follow_file(engine: sa.Engine, path: Path) -> None:
    """Open a SQLite file again that was deleted, moved or replaced: what is written to the old one is lost, without an error."""

    def identity() -> tuple[int, int] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @sa.event.listens_for(engine, "checkout")
    def look(_connection: Any, record: Any, _proxy: Any) -> None:
        now = identity()
        if record.info.get("file") is None:
            record.info["file"] = now
        elif record.info["file"] != now:
            open_store(engine.url.render_as_string(hide_password=False)).close()  # its tables, if it is new
            raise sa.exc.DisconnectionError("its file is another one now")


_SAMPLE = tuple(f.name for f in fields(Sample))


def _measurement(row: sa.RowMapping) -> tuple[Measurement, str]:
    """The measurement and the identity of its draft."""
    if not isinstance(row["machine"], dict):
        raise TypeError("the machine's state is not a JSON object")
    return Measurement.from_json({**row}), row["draft_id"] or ""


def _answer_row(key: str, answer: Recommendation, hardware: Hardware) -> dict[str, Any]:
    """What the tables of recommendations and of overall answers share."""
    return {
        "cell_key": key,
        "model": answer.model,
        "hardware_id": hardware.id,
        "hardware": hardware.to_json(),
        "recommendation": answer.to_json(),
        "created_at": answer.created_at,
    }


def _sample(row: sa.RowMapping) -> Sample:
    known = {name: row[name] for name in _SAMPLE} | {
        "prompt_type": None if row["prompt_type"] is None else PromptType(row["prompt_type"]),
        "drafting": Drafting.from_json(row["drafting"]),
    }
    return Sample(**known)


def _on_server(hardware_id: str, build: Build) -> sa.ColumnElement[bool]:
    """Compared on this machine with exactly this build."""
    c = LAUNCH_COMPARISONS.c
    return sa.and_(
        c.hardware_id == hardware_id,
        c.backend == build.backend,
        c.build == (build.fingerprint or build.version),
    )


@contextmanager
def plain_errors(engine: sa.Engine) -> Iterator[None]:
    """Turn SQLAlchemy's errors into `StoreError`."""
    where = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise StoreError(
            f"The database {where} cannot be used: {error.orig}.",
            write_hint(str(error.orig))
            or "Check that the disk has space and the file is not damaged; `autospec config show` prints its path.",
        ) from error
    except sa.exc.SQLAlchemyError as error:
        raise StoreError(f"The database {where} cannot be used: {error}.", "Check `storage`.") from error


# Advisory locks are numbers that all users of the database share: ours start with these 15 bits.
_OURS = 0x6175 << 48
_TABLES = _OURS | 0xFFFF_FFFF_FFFF


class CellLocks:
    """The cells that this process tunes, locked on a PostgreSQL that several machines share.

    PostgreSQL's advisory locks (documentation, 13.3.5) also protect the creation of tables. A session holds a cell's lock during
    a tune, and the server frees it however the session ends: no clock, no heartbeat, no lease that a long measurement could
    outlive. TCP keepalives detect a machine without power after about two minutes. Optuna's own heartbeat covers only single
    trials and trusts every machine's clock. A SQLite file belongs to one machine, where `autospec.hardware.processes` allows one
    tune at a time.

    A context manager; leaving it frees them all.
    """

    def __init__(self, url: str) -> None:
        self._engine: sa.Engine | None = None
        self._connection: sa.Connection | None = None
        if make_url(url).get_backend_name() == "postgresql":
            self._engine = sa.create_engine(url, connect_args=connect_args(url), poolclass=sa.NullPool)

    def take(self, cell_key: str) -> bool:
        """Lock a cell; False if another process, here or on another machine, has it.

        Raises:
            StoreError: The database cannot be reached.
        """
        if self._engine is None:
            return True
        with plain_errors(self._engine):
            if self._connection is None:
                # No transaction: it would stay open for the whole tune.
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            query = sa.text("SELECT pg_try_advisory_lock(:key)")
            return bool(self._connection.execute(query, {"key": _OURS | int(cell_key, 16)}).scalar())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            # Closing frees them too, but a moment later.
            with suppress(sa.exc.SQLAlchemyError):
                self._connection.execute(sa.text("SELECT pg_advisory_unlock_all()"))
            self._connection.close()
        if self._engine is not None:
            self._engine.dispose()


@contextmanager
def first_use(url: str) -> Iterator[None]:
    """Hold a lock while tables are created: several machines that start together would otherwise conflict."""
    if make_url(url).get_backend_name() != "postgresql":
        yield
        return
    engine = sa.create_engine(url, connect_args=connect_args(url), poolclass=sa.NullPool)
    try:
        with plain_errors(engine), engine.connect() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _TABLES})
            yield
    finally:
        engine.dispose()
