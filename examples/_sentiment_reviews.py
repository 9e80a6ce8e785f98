"""Reviews made of words of known valence, or read from a text file, for the example `sentiment`."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, TensorDataset

WORDS = """- okay fair decent fine nice pleasant likeable good enjoyable charming clever funny touching great delightful
wonderful brilliant superb stunning masterful slow thin bland flat weak silly dull clumsy tedious boring annoying bad
ugly stupid painful dreadful terrible awful horrible atrocious"""  # 0: fills up; 41 to 100 say nothing
VALENCES = torch.cat([torch.zeros(1), torch.linspace(0.1, 1, 20), -torch.linspace(0.1, 1, 20), torch.zeros(60)])
LONGEST, VOCABULARY = 40, 2000  # words of a review; numbers that the words of a text are given
Batch = tuple[Tensor, Tensor]  # words (B, T), 0 beyond the end of a review, and whether it is liked, 1 or 0, (B,)


def reviews(count: int, generator: torch.Generator) -> Batch:
    """Reviews of 10 to 40 words, two fifths of which have a valence."""
    telling = torch.rand(count, LONGEST, generator=generator) < 0.4
    told, plain = (torch.randint(*span, telling.shape, generator=generator) for span in ((1, 41), (41, 101)))
    lengths = torch.randint(10, LONGEST + 1, (count,), generator=generator)
    words = torch.where(telling, told, plain) * (torch.arange(LONGEST) < lengths[:, None])
    return words, (VALENCES[words].sum(1) + torch.randn(count, generator=generator) / 2 > 0).long()


def read(path: str) -> Batch:
    """Reviews from a text file; a ValueError names the first line that is none."""
    lines = [line.split() for line in Path(path).read_text(encoding="utf-8").lower().splitlines()]
    for number, line in enumerate(lines, 1):
        if line and (line[0] not in ("0", "1") or len(line) < 2):
            raise ValueError(f"{path}, line {number}: expected 1 or 0 and a sentence, got {' '.join(line)!r}")
    if len(lines := [line for line in lines if line]) < 10:
        raise ValueError(f"{path}: expected at least 10 lines with a label and a sentence, got {len(lines)}")
    words = [torch.tensor([1 + crc32(word.encode()) % VOCABULARY for word in line[1:]]) for line in lines]
    return pad_sequence(words, batch_first=True), torch.tensor([int(line[0]) for line in lines])


class Reviews(pl.LightningDataModule):
    """Reviews to learn from, new ones whenever they are loaded, and 512 to look at; of a text file, every fifth."""

    def __init__(self, sequences: int = 12800, text: str | None = None, seed: int = 0) -> None:
        super().__init__()
        self.sequences, self.text, self.seed = sequences, text, seed

    def setup(self, stage: str) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        words, liked = reviews(512, self.generator) if self.text is None else read(self.text)
        held = torch.arange(len(words)) % (1 if self.text is None else 5) == 0
        self.held, self.kept = (words[held], liked[held]), (words[~held], liked[~held])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        given = reviews(self.sequences, self.generator) if self.text is None else self.kept
        return DataLoader(TensorDataset(*given), 64, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(*self.held), 128)


def plain_words(batch: Batch) -> Tensor:
    """A context: the words that say nothing, of which the mean is held."""
    return torch.arange(41, 101)[None]


def running_sum(batch: Batch) -> Tensor:
    """A concept: the sum of the valences so far, ``(B, T)``; NaN beyond the end."""
    return VALENCES[batch[0]].cumsum(1).masked_fill(batch[0] == 0, torch.nan)
