"""Small tensors cross in one copy each way and begin where TensorRT takes them."""

import numpy as np

from drl.runtime.backends.tensorrt.staging import ALIGNMENT, Staged
from tests.runtime.backends.tensorrt.host_device import HostDevice

FIELDS = {
    "tokens": ((3, 5), np.int64),
    "lengths": ((3,), np.int32),
    "nothing": ((0, 4), np.float32),
    "values": ((2, 2), np.float16),
}


def test_what_is_uploaded_comes_back_and_no_tensor_touches_another() -> None:
    device = HostDevice()
    with device.arrays.ordered():
        staged = Staged(device, FIELDS, "a test")
        copies = len(device._queue)
        for number, array in enumerate(staged.host.values()):
            array[...] = number + 1
        staged.upload()
        device.synchronize()
        for array in staged.host.values():
            array[...] = 0
        staged.download()
        assert len(device._queue) == copies + 1
        device.synchronize()
    for number, (name, (shape, dtype)) in enumerate(FIELDS.items()):
        assert staged.host[name].shape == shape
        assert staged.host[name].dtype == dtype
        assert (staged.host[name] == number + 1).all()
        assert staged.addresses[name] % ALIGNMENT == 0


def test_nothing_to_copy_is_no_mistake() -> None:
    device = HostDevice()
    with device.arrays.ordered():
        staged = Staged(device, {}, "a test")
        staged.upload()
        staged.download()
        device.synchronize()
    assert staged.host == staged.addresses == {}
