"""Steps of the MLflow project: build, evaluate, register, and main, which is the three in one."""
