"""SASRec on ids as the PyTorch reference of PixelRec trains it, for benchmarks.reference.

It is one model in one process on CPU, without the reference's wrappers for several GPUs.
"""

import random
import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import Epoch

LENGTH = 10  # items of a history
BATCH = 64  # windows


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.heads, self.drop_weight, self.drop = heads, nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], self.heads, -1).permute(0, 2, 1, 3)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + mask
        context = self.drop_weight(logits.softmax(-1)) @ value
        context = context.permute(0, 2, 1, 3).reshape(x.shape)
        return self.LayerNorm(self.drop(self.dense(context)) + x)


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, dropout: float):
        super().__init__()
        self.dense_1, self.dense_2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.LayerNorm, self.drop = nn.LayerNorm(width, eps=1e-12), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.drop(self.dense_2(functional.gelu(self.dense_1(x)))) + x)


class _Layer(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.multi_head_attention = _Attention(width, 4, dropout)
        self.feed_forward = _FeedForward(width, 2 * width, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.feed_forward(self.multi_head_attention(x, mask))


class SASRec(nn.Module):
    """Two layers of four heads; parameters have the reference's names."""

    def __init__(self, num_items: int, width: int, dropout: float = 0.1):
        """Builds the model; `num_items` includes padding."""
        super().__init__()
        self.item_embedding = nn.Embedding(num_items, width, padding_idx=0)
        self.position_embedding = nn.Embedding(LENGTH, width)
        self.trm_encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(_Layer(width, dropout) for _ in range(2))}
        )
        self.LayerNorm, self.drop = nn.LayerNorm(width, eps=1e-12), nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def encode(self, item: Tensor, mask: Tensor) -> Tensor:
        """Returns states [B, L, D] for item vectors [B, L, D] and mask [B, L]."""
        x = self.drop(self.LayerNorm(item + self.position_embedding.weight))
        visible = torch.tril((mask != 0)[:, None, None].expand(-1, 1, LENGTH, -1))
        visible = torch.where(visible, 0.0, -1e9)
        layers = self.trm_encoder["layer"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x, visible)
        return x

    def forward(self, items: Tensor, mask: Tensor) -> Tensor:
        """Returns the loss for items [B, 2, L + 1], a window and its negatives, and mask [B, L]."""
        item = self.item_embedding(items)
        state = self.encode(item[:, 0, :-1], mask)
        positive, negative = (state * item[:, 0, 1:]).sum(-1), (state * item[:, 1, 1:]).sum(-1)
        loss = -torch.log(torch.sigmoid(positive - negative) + 1e-8)
        return (loss * mask).sum(-1).mean()


class Chunks(Dataset):
    """The reference's training samples, made one at a time: a chunk of items and its negatives."""

    def __init__(self, sequences: list[list[int]], num_items: int):
        """Takes the `sequences` of all users in time order; the last two items are held out."""
        self.num_items, self.chunks = num_items, []
        size = LENGTH + 1
        for sequence in sequences:
            train = sequence[:-2]
            if len(train) > size:
                train = train[len(train) % size :]
            self.chunks += [train[i : i + size] for i in range(0, len(train), size)]

    def __len__(self) -> int:
        return len(self.chunks)

    def _negative(self, chunk: list[int]) -> int:
        item = random.randint(1, self.num_items - 1)
        while item in chunk:
            item = random.randint(1, self.num_items - 1)
        return item

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        chunk = self.chunks[index]
        missing, targets = LENGTH + 1 - len(chunk), len(chunk) - 1
        negative = [0] * (missing + 1) + [self._negative(chunk) for _ in range(targets)]
        items = torch.tensor([[0] * missing + chunk, negative])
        return items, torch.tensor([0] * missing + [1] * targets)


class Users(Dataset):
    """The reference's validation users, one at a time: history, items to mask, and target."""

    def __init__(self, sequences: list[list[int]]):
        """Takes `sequences` as `Chunks` does."""
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> tuple[list[int], list[int], int]:
        *seen, target, _ = self.sequences[index]
        history = seen[-LENGTH:]
        return [0] * (LENGTH - len(history)) + history, seen, target


def _collate_users(samples: list[tuple[list[int], list[int], int]]) -> tuple[Tensor, ...]:
    history, seen, target = zip(*samples, strict=True)
    rows = [row for row, items in enumerate(seen) for _ in items]
    masked = torch.tensor([rows, [item for items in seen for item in items]])
    return torch.tensor(history), masked, torch.tensor(target)


class Training:
    """The reference's loop; each call gives the numbers of threads (0: all) and workers."""

    def __init__(self, sequences: list[list[int]], num_items: int, *, width: int = 512):
        """Builds the model of width D for the `sequences` of all users."""
        torch.manual_seed(0)
        self.all_threads = torch.get_num_threads()
        self.data, self.users = Chunks(sequences, num_items), Users(sequences)
        self.model = SASRec(num_items, width)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, weight_decay=0.1)
        samples = [self.data[i % len(self.data)] for i in range(BATCH)]
        self.ready = [torch.stack(x) for x in zip(*samples, strict=True)]

    def step(self, items: Tensor, mask: Tensor) -> float:
        """Trains on a batch, waits for it and returns its loss."""
        self.optimizer.zero_grad()
        loss = self.model(items, mask)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def steps(self, *, threads: int, workers: int, count: int) -> list[float]:
        """Returns the seconds of each of `count` steps on a batch that is ready."""
        del workers
        torch.set_num_threads(threads or self.all_threads)
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            self.step(*self.ready)
            seconds.append(time.perf_counter() - start)
        return seconds

    def epoch(self, *, threads: int, workers: int) -> Epoch:
        """Times an epoch; it starts its workers again, as in the reference."""
        torch.set_num_threads(threads or self.all_threads)
        begin, first, total = time.perf_counter(), 0.0, 0.0
        loader = DataLoader(self.data, BATCH, shuffle=True, num_workers=workers)
        for items, mask in loader:
            first = first or time.perf_counter() - begin
            total += self.step(items, mask)
        return Epoch(len(loader), first, time.perf_counter() - begin)

    @torch.no_grad()
    def validation(self, *, threads: int, workers: int) -> float:
        """Returns the seconds of ranking the catalogue for all users."""
        torch.set_num_threads(threads or self.all_threads)
        begin, found = time.perf_counter(), []
        self.model.eval()
        table = self.model.item_embedding.weight
        loader = DataLoader(self.users, 1024, num_workers=workers, collate_fn=_collate_users)
        for history, masked, target in loader:
            scores = self.model.encode(table[history], history)[:, -1] @ table.T
            scores[:, 0] = scores[masked[0], masked[1]] = -torch.inf
            found.append((scores.topk(10).indices == target[:, None]).numpy())
        self.model.train()
        return time.perf_counter() - begin


def check(golden: Mapping[str, np.ndarray]) -> None:
    """Raises an error if the loss before or after an AdamW step is not the reference's."""
    start = {k.removeprefix("param0/"): v for k, v in golden.items() if k.startswith("param0/")}
    num_items, width = start["item_embedding.weight"].shape
    model = SASRec(num_items, width, dropout=0.0)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in start.items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    batch = [torch.from_numpy(golden[f"batch.{n}"]) for n in range(2)]
    for n in range(2):
        loss = model(*batch)
        np.testing.assert_allclose(loss.item(), golden[f"loss{n}"], rtol=1e-6)
        loss.backward()
        optimizer.step()
