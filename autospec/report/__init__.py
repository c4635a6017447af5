"""Results for people and for other programs: tables, texts, server configurations, exports."""
