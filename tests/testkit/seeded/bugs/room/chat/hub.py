"""What is said goes to the connections of this process."""


class Hub:
    def __init__(self):
        self.connections = []

    async def serve(self, websocket):
        await websocket.accept()
        self.connections.append(websocket)
        try:
            async for text in websocket.iter_text():
                for each in self.connections:
                    await each.send_text(text)
        finally:
            self.connections.remove(websocket)


hub = Hub()


async def serve(websocket):
    await hub.serve(websocket)
