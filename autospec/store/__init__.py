"""The database: measurements and recommendations, in one place with Optuna's tables.

`autospec.store.database` reads and writes with SQLAlchemy. `autospec.store.reader` reads recommendations from SQLite without
importing it.
"""
