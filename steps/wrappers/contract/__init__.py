"""The contract of the custom models: from a request to checked settings, and from a completion to a reply.

A request that breaks a limit raises `errors.RequestError`: HTTP 400 when served, with a stable code. The message
names the field, the value and the limit. It never repeats the prompt.
"""
