"""The database: measurements and recommendations, beside Optuna's own tables in the same place.

`autospec.store.database` writes and reads through SQLAlchemy; `autospec.store.reader` only reads
recommendations, and answers without importing it where the database is SQLite.
"""
