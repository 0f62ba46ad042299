import time

MOST = 30


class Limiter:
    def __init__(self, most):
        self.most = most
        self.hits = {}

    def exceeded(self, client):
        hits = self.hits.setdefault(client, [])
        hits.append(time.monotonic())
        return len(hits) > self.most


limiter = Limiter(MOST)


def exceeded(client):
    return limiter.exceeded(client)
