"""A clock for what waits."""

import asyncio


class FakeClock:
    """Time that passes by waiting only."""

    def __init__(self):
        self.time, self.waits = 0.0, []

    def now(self):
        return self.time

    async def sleep(self, seconds):
        until = self.time + seconds
        if seconds:
            self.waits.append(round(seconds, 3))
        await asyncio.sleep(0)
        self.time = max(self.time, until)
