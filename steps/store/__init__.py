"""MLflow: connection, addresses, child processes, runs, variants, tag names, prompts, integrity, orphans."""
