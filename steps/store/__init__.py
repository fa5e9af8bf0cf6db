"""MLflow: the connection, runs, variants, names of tags and metrics, integrity, orphans."""
