from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from chat import hub

app = Starlette(routes=[WebSocketRoute("/room", hub.serve)])
