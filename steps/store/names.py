"""The names of tags that this project writes to MLflow."""

FINGERPRINT = "phi3.fingerprint"
