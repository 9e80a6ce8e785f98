"""Event files written by TensorBoard's own code, record by record."""

import io

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def content(*messages):
    """An event file of messages, events or bytes."""
    file = io.BytesIO()
    writer = RecordWriter(file)
    for message in messages:
        writer.write(message if isinstance(message, bytes) else message.SerializeToString())
    return file.getvalue()


def scalars(step, wall_time=1.5e9, **numbers):
    """An event with a number for each tag."""
    values = [Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]
    return Event(wall_time=wall_time, step=step, summary=Summary(value=values))


def write(folder, *messages, name="events.out.tfevents.1.host.1.0"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content(*messages))
    return folder / name
