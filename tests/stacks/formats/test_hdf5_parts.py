import h5py
import numpy as np
import pytest

from tests.stacks.stacks import random_stack
from utils.errors import UserError
from utils.stacks import list_stacks, open_stack


def test_chunks_that_were_never_written(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (6, 8, 8), "u1", chunks=(2, 8, 8), fillvalue=9)
        data[:2] = 1
        file.create_dataset("plain", (4, 4, 4), "u1")
        file["whole"] = random_stack((4, 4, 4))
        file.create_dataset("packed", data=random_stack((4, 4, 4)), compression=1)
    for key, said in (
        ("data", r"2 of the 3 chunks of data were never written: read as the fill value"),
        ("plain", "nothing of plain was ever written"),
    ):
        with open_stack(tmp_path / "a.h5", key=key) as stack:
            assert stack.warning().startswith(f"{tmp_path / 'a.h5'}: {said}")
    for key in ("whole", "packed"):
        with open_stack(tmp_path / "a.h5", key=key) as stack:
            assert stack.warning() is None


def virtual(path, sources, shape=(8, 5, 6)):
    layout = h5py.VirtualLayout(shape, "u2")
    for place, (name, planes) in enumerate(sources):
        layout[4 * place : 4 * place + planes] = h5py.VirtualSource(name, "raw", (planes, 5, 6))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)


@pytest.mark.parametrize("how", ["whole", "absent", "hole", "no dataset", "short", "unwritten"])
def test_virtual_datasets(tmp_path, how):
    parts = [random_stack((4, 5, 6), np.uint16, seed) + 1 for seed in range(2)]
    for place, part in enumerate(parts):
        with h5py.File(tmp_path / f"{place}.h5", "w") as file:
            if place == 0 or how not in ("no dataset", "unwritten"):
                file["raw"] = part[:2] if place and how == "short" else part
            elif how == "unwritten":
                file.create_dataset("raw", (4, 5, 6), "u2", chunks=(1, 5, 6))
    if how == "absent":
        (tmp_path / "1.h5").unlink()
    virtual(tmp_path / "a.h5", [("0.h5", 4), *([] if how == "hole" else [("1.h5", 4)])])
    with open_stack(tmp_path / "a.h5") as stack:
        said = stack.warning()
        if how == "short":  # HDF5 itself refuses
            with pytest.raises(UserError, match="insufficient elements"):
                stack.read()
        read = stack.read(0, 4) if how == "short" else stack.read()
    np.testing.assert_array_equal(read[..., :4], parts[0].T)
    expected = {
        "absent": "a part of data stands in 1.h5, which is absent",
        "hole": "120 of the 240 voxels of data stand nowhere",
        "no dataset": "a part of data is raw of 1.h5, which lacks it",
        "unwritten": "4 of the 4 chunks of raw were never written",
    }
    if how in ("whole", "short"):
        assert said is None
        np.testing.assert_array_equal(read[..., 4:], parts[1].T[..., : read.shape[-1] - 4])
    else:
        assert expected[how] in said and "\n" not in said


def test_bytes_in_another_file(tmp_path):
    array = random_stack((4, 5, 6))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", array.shape, "u1", external=[("voxels.raw", 8, array.nbytes)])
    with pytest.raises(UserError, match=r"stand in .*voxels\.raw, which is absent"):
        open_stack(tmp_path / "a.h5")
    (tmp_path / "voxels.raw").write_bytes(bytes(8) + array.tobytes())
    with open_stack(tmp_path / "a.h5") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert stack.warning() is None
    (tmp_path / "voxels.raw").write_bytes(bytes(8) + array.tobytes()[:-1])
    with pytest.raises(UserError, match=r"stand in .*voxels\.raw, which is cut"):
        open_stack(tmp_path / "a.h5")


def test_links(tmp_path):
    array = random_stack((4, 5, 6))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["inner/raw"] = array
        file["inner/back"] = h5py.SoftLink("/inner")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["there"] = h5py.ExternalLink("b.h5", "/inner")
        file["gone"] = h5py.ExternalLink("c.h5", "/raw")
        file["nowhere"] = h5py.SoftLink("/other")
    assert [entry.key for entry in list_stacks(tmp_path / "a.h5")] == ["there/raw"]
    for key in (None, "there/raw"):
        with open_stack(tmp_path / "a.h5", key=key) as stack:
            np.testing.assert_array_equal(stack.read(), array.T)
    with pytest.raises(UserError, match=r"'gone': not there; .*gone \(to /raw of c\.h5\)"):
        open_stack(tmp_path / "a.h5", key="gone")
    (tmp_path / "b.h5").unlink()
    with pytest.raises(UserError, match=r"no arrays; its links lead nowhere: .*inner of b\.h5"):
        open_stack(tmp_path / "a.h5")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["group/data"] = array
        file["also"] = file["group/data"]
        file["soft"] = h5py.SoftLink("/group/data")
    assert len(list_stacks(tmp_path / "d.h5")) == 1
    for key in (None, "also", "soft", "group/data"):
        with open_stack(tmp_path / "d.h5", key=key) as stack:
            np.testing.assert_array_equal(stack.read(), array.T)


def test_links_that_point_at_each_other(tmp_path):
    array = random_stack((4, 5, 6))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = array
        file["one"], file["two"] = h5py.SoftLink("/two"), h5py.SoftLink("/one")
        file["self"] = h5py.SoftLink("/self/below")
    with open_stack(tmp_path / "a.h5") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert "its links lead nowhere: one (to /two)" in stack.warning()
    with pytest.raises(UserError, match=r"lead nowhere: one \(to /two\), self .*, two \(to /one"):
        open_stack(tmp_path / "a.h5", key="one")


def test_an_unknown_filter_names_its_package(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=random_stack((4, 5, 6)), compression=1)
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code != h5py.h5z.FILTER_DEFLATE)
    with pytest.raises(UserError, match=r"\(deflate, number 1\).*pip install hdf5plugin") as caught:
        open_stack(tmp_path / "a.h5")
    assert "damaged" not in str(caught.value)
