import math
import struct
import tracemalloc
from bisect import bisect_right
from collections import Counter

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.util.tensor_util import make_ndarray, make_tensor_proto
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from rnn_callbacks.compare.checksums import is_intact
from rnn_callbacks.compare.event_files import BLOCK, FEW, LONG, read_events

from .event_records import content, scalars, write


def referee(folder):
    """All scalars by TensorBoard's own reader: tag -> rows of step, time, value."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}, purge_orphaned_data=False)
    found.Reload()
    rows = {tag: [(p.step, p.wall_time, p.value) for p in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    for tag in found.Tags()["tensors"]:
        if tag in found.summary_metadata and found.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            points = found.Tensors(tag)
            rows[tag] = [(p.step, p.wall_time, float(make_ndarray(p.tensor_proto))) for p in points]
    return rows


def rows_of(file):
    return {
        tag: list(zip(points.steps.tolist(), points.walls.tolist(), points.values.tolist(), strict=True))
        for tag, points in file.points.items()
    }


def assert_equal_rows(found, expected):
    assert found.keys() == expected.keys()
    for tag, rows in expected.items():
        np.testing.assert_array_equal(np.array(found[tag]), np.array(rows), err_msg=tag)  # NaN equals NaN here


def assert_as_tensorboard(*messages, folder):
    path = write(folder, *messages)
    found = read_events(path.read_bytes())
    assert found.complaint == ""
    assert_equal_rows(rows_of(found), referee(folder))
    return found


def test_what_a_summary_writer_wrote_is_what_tensorboard_reads(tmp_path):
    writer = SummaryWriter(tmp_path)
    generator = np.random.default_rng(0)
    picture = Figure()
    picture.subplots().plot([1, 2])
    for step in range(150):
        for tag in ("loss", "lass", "gates/rnn.l0/update/mean", "Größe/λ 学習", ""):
            writer.add_scalar(tag, generator.normal(), step)
        if step % 50 == 0:
            writer.add_histogram("weights", torch.randn(500), step)
            writer.add_text("words", "loss " * 400, step)
            writer.add_image("picture", torch.rand(3, 30, 30), step)
            writer.add_figure("figure", picture, step, close=False)
            writer.add_tensor("tensor", torch.rand(1), step)
            writer.add_custom_scalars({"a": {"b": ["Multiline", ["loss"]]}})
    writer.close()
    (path,) = tmp_path.iterdir()
    found = read_events(path.read_bytes())
    assert found.complaint == ""
    assert len(found.points) == 5
    assert_equal_rows(rows_of(found), referee(tmp_path))


def test_steps_of_all_sizes_and_odd_values_are_what_tensorboard_reads(tmp_path):
    steps = [0, 1, 127, 128, 2**14, 2**31, 2**40 + 3, 2**63 - 1, -1, -(2**63), 5, 3, 3, 4]
    values = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, 3e38, 0.1]
    messages = [scalars(step, 1.7e9 + n, loss=values[n % 8]) for n, step in enumerate(steps * FEW)]
    messages += [scalars(3, time, loss=1.0) for time in (0.0, -1.0, math.nan, math.inf)]
    found = assert_as_tensorboard(*messages, folder=tmp_path)
    assert found.points["loss"].steps.tolist()[: len(steps)] == steps  # in the order in which they were written


def test_tensors_of_other_writers_are_scalars_where_their_plugin_says_so(tmp_path):
    messages = []
    for step in range(FEW + 1):
        for value in scalar_pb("loss", step / 3).value:  # as tf.summary.scalar writes
            if step:
                value.ClearField("metadata")  # which only the first record of a tag needs
            messages.append(Event(wall_time=step, step=step, summary=Summary(value=[value])))
        plain = Summary.Value(tag="tensor", tensor=make_tensor_proto(np.float32(step)))
        messages.append(Event(wall_time=step, step=step, summary=Summary(value=[plain])))
    found = assert_as_tensorboard(*messages, folder=tmp_path)
    assert found.points.keys() == {"loss"}


@pytest.mark.parametrize("number", [np.float64(0.1), np.float16(0.5), np.int64(-7), np.array([[2.5]]), np.bool_(True)])
def test_a_wrapped_number_of_any_type_is_read(number):
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    value = Summary.Value(tag="x", tensor=make_tensor_proto(number), metadata=metadata)
    found = read_events(content(Event(step=4, summary=Summary(value=[value]))))
    assert rows_of(found) == {"x": [(4, 0.0, float(number.reshape(())))]}


def test_tensors_that_hold_no_number_are_passed_over_whatever_they_claim_to_be():
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    vast = make_tensor_proto(np.ones(2, np.float32))
    for dim in vast.tensor_shape.dim:
        dim.size = 2**40
    text, several = make_tensor_proto("1.5"), make_tensor_proto(np.ones(3))
    empty = make_tensor_proto(np.float32(1))
    empty.ClearField("float_val")
    empty.ClearField("tensor_content")
    strange = make_tensor_proto(np.float32(1))
    strange.dtype = 100
    values = [Summary.Value(tag="x", tensor=t, metadata=metadata) for t in (vast, text, several, empty, strange)]
    tracemalloc.start()
    found = read_events(content(Event(summary=Summary(value=values)), scalars(1, loss=2.0)))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert rows_of(found) == {"loss": [(1, 1.5e9, 2.0)]}
    assert found.complaint == ""


def test_an_event_with_several_numbers_gives_them_all(tmp_path):
    messages = [scalars(step, a=step, b=-step, c=0.5) for step in range(FEW + 5)]
    found = assert_as_tensorboard(*messages, folder=tmp_path)
    assert len(found.points) == 3


def test_events_whose_parts_stand_in_another_order_are_what_tensorboard_reads(tmp_path):
    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    messages = []
    for step in range(FEW + 5):
        tail = struct.pack("<f", step)
        value = b"\x15" + tail + field(1, b"tag\x15" + bytes([0x30 + step]) * 4)  # ends like a number, and is a tag
        time = b"\x09" + struct.pack("<d", step)
        messages.append(time + b"\x10" + bytes([step]) + field(5, field(1, value)))
        plain = field(1, b"late") + b"\x15" + tail
        messages.append(field(5, field(1, plain)) + b"\x10" + bytes([step]) + time)  # the number is not at the end
        messages.append(time + b"\x10\x80\x00" + field(5, field(1, plain)))  # step 0 in two bytes
        messages.append(time + b"\x10\x00" + field(5, field(1, field(1, b"zero") + b"\x15" + tail)))  # step 0, said
    found = assert_as_tensorboard(*messages, folder=tmp_path)
    assert found.points["late"].values.tolist() == [n for n in range(FEW + 5) for _ in range(2)]


def test_bytes_at_the_end_that_only_look_like_a_number_are_not_taken(tmp_path):
    def message(step, number):
        value = Summary.Value(tag="x", simple_value=number, node_name=f"name\x15{step:04d}")
        return Event(wall_time=1, step=step, summary=Summary(value=[value]))

    messages = [message(step, number) for step in range(3 * FEW) for number in (1.0, 4.0)]
    found = assert_as_tensorboard(*messages, folder=tmp_path)
    assert found.points["x"].values.tolist() == [1, 4] * (3 * FEW)


def test_thousands_of_tags_and_more_records_than_a_block_are_all_there():
    messages = [scalars(step, **{f"tag{tag:04d}": step + tag}) for step in range(4) for tag in range(3000)]
    messages += [scalars(step, loss=step) for step in range(BLOCK + 50)]
    found = read_events(content(*messages))
    assert len(found.points) == 3001
    assert found.points["tag2718"].values.tolist() == [2718, 2719, 2720, 2721]
    assert found.points["loss"].steps.tolist() == list(range(BLOCK + 50))


def small_file():
    """Every kind of record once or more, and how many numbers there are up to each byte."""
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    wrapped = Summary.Value(tag="w", tensor=make_tensor_proto(0.25), metadata=metadata)
    return [
        Event(wall_time=1.0, file_version="brain.Event:2"),
        *(scalars(step, loss=step + 0.5) for step in range(FEW + 2)),
        scalars(300, a=1.0, b=2.0),
        Event(step=2, summary=Summary(value=[wrapped])),
        *(Event(summary=part) for part in hparams({"lr": 0.1, "cell": "gru"}, {"x": 1})),
        scalars(5, loss=7.0),
    ]


def triples(file):
    return Counter((tag, *row) for tag, rows in rows_of(file).items() for row in rows)


def test_a_file_cut_at_any_byte_gives_every_record_before_the_cut():
    messages = small_file()
    whole = content(*messages)
    ends = {len(content(*messages[:count])): count for count in range(len(messages) + 1)}
    expected = Counter()
    for cut in range(len(whole) + 1):
        found = read_events(whole[:cut])
        if cut in ends:
            assert found.complaint == ""
            expected = triples(read_events(content(*messages[: ends[cut]])))
            assert sum(expected.values()) == sum(
                value.WhichOneof("value") is not None
                for event in messages[: ends[cut]]
                for value in event.summary.value
            )
        else:
            assert found.complaint in {
                "ends within a record: still being written, or cut off",
                "is no event file, or damaged from its beginning",
            }
        assert triples(found) == expected


def assert_no_flipped_bit_makes_a_number(messages, bits):
    """Yields what is wrong with each file."""
    whole = bytearray(content(*messages))
    ends = [len(content(*messages[:count])) for count in range(len(messages) + 1)]
    upto = [triples(read_events(bytes(whole[:end]))) for end in ends]
    sound = read_events(bytes(whole))
    assert sound.complaint == ""
    for bit in bits(8 * len(whole)):
        whole[bit // 8] ^= 1 << bit % 8
        found = read_events(bytes(whole))
        whole[bit // 8] ^= 1 << bit % 8
        before = upto[bisect_right(ends, bit // 8) - 1]
        assert before <= triples(found) <= upto[-1], bit
        assert found.hyperparameters in ({}, sound.hyperparameters), bit
        yield found.complaint


def test_no_flipped_bit_makes_a_number_and_what_stands_before_it_is_there():
    messages = small_file()
    kinds = [messages[0], *messages[2:5], *messages[-6:-4], messages[-1]]  # those of the hyperparameters are long
    assert all("damaged" in complaint for complaint in assert_no_flipped_bit_makes_a_number(kinds, range))


def test_no_flipped_bit_in_a_long_record_makes_a_number():
    long = {f"a tag with a name of some length {n}": 0.5 * n for n in range(40)}
    settings = [Event(summary=part) for part in hparams({"words": "long " * 300, "lr": 0.125}, {})]
    messages = [scalars(1, loss=2.0), scalars(2, **long), *settings, scalars(3, loss=2.0)]
    assert max(message.ByteSize() for message in messages) > LONG
    generator = np.random.default_rng(0)
    flips = list(assert_no_flipped_bit_makes_a_number(messages, lambda count: generator.choice(count, 400, False)))
    assert any("damaged" in complaint for complaint in flips)


def test_damage_is_said_with_the_number_of_its_record():
    whole = bytearray(content(*(scalars(step, loss=1.0) for step in range(9))))
    end = len(content(*(scalars(step, loss=1.0) for step in range(6))))
    whole[end + 20] ^= 1  # within the seventh record
    found = read_events(bytes(whole))
    assert found.complaint == "record 7 is damaged; it and what follows were left out"
    assert found.points["loss"].steps.tolist() == list(range(6))


def test_a_length_that_cannot_be_is_damage_and_takes_no_memory():
    sound = content(scalars(1, loss=1.0))
    tracemalloc.start()
    found = read_events(sound + struct.pack("<Q", 2**63) + b"\0" * 40)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert found.complaint == "record 2 is damaged; it and what follows were left out"
    assert rows_of(found) == {"loss": [(1, 1.5e9, 1.0)]}


@pytest.mark.parametrize(
    "garbage", [b"a", b"\0" * 1000, b"step,loss\n1,2\n" * 20, np.random.default_rng(0).bytes(5000)]
)
def test_what_is_no_event_file_is_called_so(garbage):
    found = read_events(garbage)
    assert found.points == {}
    assert found.complaint == "is no event file, or damaged from its beginning"


def test_an_empty_file_is_one_that_has_just_begun():
    found = read_events(b"")
    assert (found.points, found.hyperparameters, found.complaint) == ({}, {}, "")


def test_a_message_with_a_right_checksum_that_is_no_event_is_damage():
    found = read_events(content(scalars(1, loss=1.0), b"\xff" * 30, scalars(2, loss=1.0)))
    assert found.complaint == "record 2 is damaged; it and what follows were left out"
    assert found.points["loss"].steps.tolist() == [1]


def test_hyperparameters_of_a_session_are_read_and_the_last_one_counts():
    first = [Event(summary=part) for part in hparams({"lr": 0.1, "cell": "gru", "longer": "x" * 50}, {"a": 1})]
    later = [Event(summary=part) for part in hparams({"lr": 0.2, "bidirectional": True}, {"a": 1})]
    found = read_events(content(*first, *later))
    assert found.hyperparameters == {"lr": 0.2, "cell": "gru", "longer": "x" * 50, "bidirectional": True}
    assert read_events(content(*first, b"\xff" * 30, *later)).hyperparameters["lr"] == 0.1


def test_a_checksum_of_one_stretch_is_that_of_the_record_writer():
    generator = np.random.default_rng(0)
    for length in (0, 1, 7, 1000):
        whole = content(generator.bytes(length))
        assert is_intact(whole, 12, length)
        assert is_intact(whole, 0, 8)
        for bit in generator.integers(0, 8 * (length + 4), 20):
            broken = bytearray(whole)
            broken[12 + bit // 8] ^= 1 << bit % 8
            assert not is_intact(bytes(broken), 12, length)


def test_memory_stays_within_a_few_times_the_file():
    messages = [scalars(step, **{"a tag that is long " * 50: 1.0}) for step in range(4000)]
    whole = content(*messages)
    tracemalloc.start()
    read_events(whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * len(whole)  # 2.4 of them; blocks of any size would take 8.6
