"""The server: a bundle's artifact over the Open Inference Protocol.

`oip` is the protocol, `hosted` a model in its worker processes, `handler` the answer to a request,
free of any server framework; `server` binds that to uvicorn.
"""
