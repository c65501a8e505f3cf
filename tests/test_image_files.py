"""Images of users are read as viewers display them. Other files in their folders are left out."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources import digit_domains, image_folder, mini_imagenet, pacs
from pyro_metabayes.data.sources.images import pixels
from pyro_metabayes.data.sources.listing import lines_of
from pyro_metabayes.errors import UsageError
from tests.published import write_table

LEFT = [
    ".ipynb_checkpoints", ".DS_Store", "._0.png", ".Trashes", ".git", "__MACOSX", "Thumbs.db", "thumbs.db",
    "desktop.ini", "Desktop.ini", "@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "System Volume Information",
]  # fmt: skip
# Also any other hidden name, and names that only begin or end like one of those, which are of the user.
HIDDEN = st.sampled_from(LEFT) | st.from_regex(r"\A\.[a-z_]{1,8}(\.png)?\Z")
WRITTEN = st.sampled_from(["folder of images", "folder in a folder", "image", "text"])
PLACES = st.sampled_from(["", "train", "train/a", "val/b", "test/c", "train/a/inner"])


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path, "PNG")


def write_classes(folder: Path) -> None:
    """Two images in a class of each split; `a` has a third one in a subfolder."""
    for number, name in enumerate(("train/a", "val/b", "test/c")):
        for index in range(2):
            write_image(folder / name / f"{index}.png", 10 * number + index)
    write_image(folder / "train/a/inner/2.png", 200)


def leave(folder: Path, name: str, written: str) -> None:
    """Write a file as left by programs and operating systems in folders, such as copies of the images."""
    path = folder / name
    if path.exists():
        return
    if written == "text":
        path.write_text("view")
    elif written == "image":
        write_image(path, 99)
    else:
        path /= "a/b" if written == "folder in a folder" else ""
        for index in range(2):
            write_image(path / f"{index}.png", index)


def same(one: Bank, other: Bank) -> bool:
    return one.class_names == other.class_names and one.fingerprint() == other.fingerprint()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path_factory.mktemp("cache")))


# What is listed --------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(PLACES, HIDDEN, WRITTEN), min_size=1, max_size=4))
def test_hidden_files_and_folders_are_not_read(left: list[tuple[str, str, str]]) -> None:
    """With what is left behind at any depth, the bank is that of the images alone."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("METABAYES_CACHE", f"{folder}/cache")
        mine = Path(folder) / ".mine"  # the folders above are not of the data
        write_classes(mine)
        alone = image_folder.load(str(mine), size=4)
        for place, name, written in left:
            leave(mine / place, name, written)
        assert same(image_folder.load(str(mine), size=4), alone)
        assert alone.class_sizes.tolist() == [3, 2, 2]


def test_what_is_left_out_is_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path)
    leave(tmp_path / "train/a", ".DS_Store", "text")
    image_folder.load(str(tmp_path), size=4)
    assert capsys.readouterr().err == ""
    for name in ("train/a/0.heic", "train/a/inner/notes.txt", "test/c/README"):
        (tmp_path / name).write_text("")
    (tmp_path / "val/b/more").symlink_to(tmp_path / "train/a")
    assert image_folder.load(str(tmp_path), size=4).class_sizes.tolist() == [3, 2, 2]
    assert capsys.readouterr().err == (
        f"note: left out of {tmp_path}: 3 files without the suffix of an image (.heic, .txt, no suffix) and 1 linked "
        "folder within classes\n"
    )


@pytest.mark.parametrize("name", ["MACOSX", "Thumbs.db.d", "lost", "eaDir", "x.DS_Store", "recycle"])
def test_other_names_are_classes(name: str, tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_image(tmp_path / "train" / name / "0.png", 3)
    assert name in image_folder.load(str(tmp_path), size=4).class_names


def test_a_list_names_no_hidden_folder(tmp_path: Path) -> None:
    """Lists are often written by `ls`."""
    write_classes(tmp_path)
    for split, name in zip(SPLITS, "abc", strict=True):
        (tmp_path / split / name).rename(tmp_path / name)
        (tmp_path / f"{split}.txt").write_text(f"{name}\n")
    leave(tmp_path, "__MACOSX", "folder of images")
    (tmp_path / "val.txt").write_text("__MACOSX\nb\n")
    with pytest.raises(UsageError, match=r"names of classes in .*val\.txt, got '__MACOSX' \(hidden"):
        image_folder.load(str(tmp_path), size=4)


@pytest.mark.parametrize("name", ["._1.png", ".ipynb_checkpoints", "Thumbs.db"])
def test_pacs_has_no_hidden_images(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path))
    for domain in pacs.DOMAINS:
        for number, label in enumerate(pacs.CLASSES):
            for index in range(2):
                write_image(tmp_path / "pacs/kfold" / domain / label / f"{index}.png", 10 * number + index)
    alone = pacs.load(size=4)
    for file in [*(tmp_path / "pacs/kfold/photo").iterdir()]:
        leave(file, name, "image")
    assert same(pacs.load(size=4), alone)


def test_an_archive_of_photographs_has_no_hidden_ones(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (30, 30)).save(picture, "JPEG")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("1.jpg", "2.jpg", "3.jpg", "4.jpg", "__MACOSX/._1.jpg", "@eaDir/1.jpg", ".x/2.jpg", "._3.jpg"):
            archive.writestr(name, picture.getvalue())
    digits = digit_domains.Digits({"photographs": tmp_path / "p.zip"}, 8, {}, 0)
    assert [len(digits.photographs(split)) for split in ("train", "test")] == [3, 1]


@pytest.mark.parametrize("place", ["val/b/1.png", "val/b/more", "val/other"])
def test_a_broken_link_is_named(place: str, tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / place).unlink(missing_ok=True)
    (tmp_path / place).symlink_to("/nowhere/x.png")
    name = place.rpartition("/")[2]
    with pytest.raises(UsageError, match=rf"got 1 broken link: {name} leads to /nowhere/x.png, .*; fix or remove"):
        image_folder.load(str(tmp_path), size=4)


def test_links_to_images_and_classes_are_read(tmp_path: Path) -> None:
    write_classes(tmp_path / "real")
    alone = image_folder.load(str(tmp_path / "real"), size=4)
    for split in SPLITS:
        (tmp_path / "linked" / split).mkdir(parents=True)
        for path in (tmp_path / "real" / split).iterdir():
            (tmp_path / "linked" / split / path.name).symlink_to(path)
    assert same(image_folder.load(str(tmp_path / "linked"), size=4), alone)


# Lists of names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_lists_may_begin_with_a_byte_order_mark(encoding: str, end: str, tmp_path: Path) -> None:
    text = end.join(["chêne", "b c", ""])
    if encoding.endswith("-bom"):
        content = ("\ufeff" + text).encode(encoding.removesuffix("-bom"))
    else:
        content = text.encode(encoding)
    (tmp_path / "train.txt").write_bytes(content)
    assert lines_of(tmp_path / "train.txt") == ["chêne", "b c"]


def test_a_table_may_begin_with_a_byte_order_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path))
    write_table(tmp_path / "mini_imagenet")
    alone = mini_imagenet.load()
    table = tmp_path / "mini_imagenet/val.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert same(mini_imagenet.load(), alone)


# What is read ----------------------------------------------------------------------------------------

SHOWN = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)  # higher than wide
UNDO = {  # how an image that is shown as SHOWN is stored, by the value of its EXIF orientation
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


def read(image: Image.Image, form: str = "PNG", channels: int = 3, **options: object) -> np.ndarray:
    """The pixels [height, width, channels] that `pixels` reads from the image saved in a format."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return pixels(file.getvalue(), None, channels).transpose(1, 2, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_images_stand_upright(orientation: int, form: str, mode: str) -> None:
    image = Image.fromarray(np.ascontiguousarray(UNDO[orientation](SHOWN))).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if form == "WEBP" else {}
    assert np.array_equal(read(image, form, exif=exif, **lossless), SHOWN)


def test_an_upright_jpeg_is_resized_after_it_is_turned(tmp_path: Path) -> None:
    """As `image_folder` reads photographs."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.repeat(np.repeat(SHOWN, 8, 0), 8, 1))
    picture.save(tmp_path / "upright.jpg", quality=100, subsampling=0)
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.jpg", quality=100, subsampling=0, exif=exif)
    upright, lying = (pixels(tmp_path / f"{name}.jpg", 12).astype(int) for name in ("upright", "lying"))
    assert np.abs(upright - lying).max() <= 4  # the error of JPEG


def test_damaged_exif_data_leave_the_image_as_it_is() -> None:
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0"):
        assert np.array_equal(read(Image.fromarray(SHOWN), exif=exif), SHOWN)


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0), ("#7f7f7f", 127)])
def test_transparent_images_are_laid_on_the_background(background: str, value: int, tmp_path: Path) -> None:
    """Alpha 0 shows the background, 255 the image, and 51 a fifth of it."""
    shades = np.array([[[200, 0, 0, 0], [200, 100, 0, 255], [200, 100, 50, 51]]], np.uint8)
    for split, name in zip(SPLITS, "abc", strict=True):
        (tmp_path / split / name).mkdir(parents=True)
        Image.fromarray(np.repeat(shades, 3, 0)).save(tmp_path / split / name / "0.png")
    bank = image_folder.load(str(tmp_path), size=3, background=background)
    mixed = [0.2 * shade + 0.8 * value for shade in (200, 100, 50)]
    expected = np.array([[value] * 3, [200, 100, 0], mixed])
    assert np.abs(bank.inputs[0, :, 0].numpy().T - expected).max() <= 1


def transparent() -> dict[str, tuple[Image.Image, dict[str, object]]]:
    """A transparent pixel, stored as black, and an opaque grey pixel, in every image mode with transparency."""
    grey = np.array([[0, 90]], np.uint8)
    palette = Image.fromarray(grey).convert("P")
    alpha = Image.fromarray(np.array([[0, 255]], np.uint8))
    two = {"LA": Image.merge("LA", (Image.fromarray(grey), alpha)), "P": palette, "L": Image.fromarray(grey)}
    return {
        "LA": (two["LA"], {}),
        "RGBA": (two["LA"].convert("RGBA"), {}),
        "L with a transparent shade": (two["L"], {"transparency": 0}),
        "RGB with a transparent colour": (two["L"].convert("RGB"), {"transparency": (0, 0, 0)}),
        "P with a transparent entry": (palette, {"transparency": 0}),
        "P with alpha of each entry": (palette, {"transparency": bytes([0] + [255] * 255)}),
    }


@pytest.mark.parametrize("name", transparent())
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_transparency_is_seen(name: str, channels: int) -> None:
    image, options = transparent()[name]
    assert read(image, "PNG", channels, **options)[0].tolist() == [[255] * channels, [90] * channels]


def png(bits: int, colour_type: int, transparent: bytes, row: bytes) -> bytes:
    """A PNG file of two pixels, with the transparent colour in its chunk tRNS."""
    header = (2).to_bytes(4) + (1).to_bytes(4) + bytes([bits, colour_type, 0, 0, 0])
    chunks = {b"IHDR": header, b"tRNS": transparent, b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}
    parts = [len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4) for name, data in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    "file",
    [
        png(16, 2, bytes([4, 0, 4, 0, 4, 0]), bytes([4, 0] * 3 + [90, 0] * 3)),
        png(16, 0, bytes([4, 0]), bytes([4, 0, 90, 0])),
        png(4, 0, bytes([0, 5]), bytes([0x5A])),
    ],
    ids=["16-bit colours", "16-bit grey", "4-bit grey"],
)
def test_a_transparent_colour_that_is_not_found_is_refused(file: bytes) -> None:
    with pytest.raises(ValueError, match="a transparent colour without 8 bits per channel; save it"):
        pixels(file, None)


def test_a_black_and_white_image_may_have_a_transparent_colour() -> None:
    assert pixels(png(1, 0, bytes([0, 0]), bytes([0x40])), None, 1, (7, 7, 7)).tolist() == [[[7, 255]]]


@pytest.mark.parametrize("background", ["", "glass", "#ffffff80", "rgba(1,2,3,4)"])
def test_a_background_is_an_opaque_colour(background: str, tmp_path: Path) -> None:
    write_classes(tmp_path)
    with pytest.raises(UsageError, match=r"expected data\.background to be an opaque colour such as white or #ffffff"):
        image_folder.load(str(tmp_path), background=background)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight(form: str) -> None:
    values = np.array([[0, 256, 257, 40_000, 65_535]], np.uint16)
    assert read(Image.fromarray(values), form, 1)[0, :, 0].tolist() == [0, 1, 1, 156, 255]


def test_numbers_of_an_unknown_range_are_refused() -> None:
    for values in (np.zeros((2, 2), np.int32), np.zeros((2, 2), np.float32)):
        with pytest.raises(ValueError, match=r"the image has the mode [IF], not 8 bits per channel"):
            read(Image.fromarray(values), "TIFF")


def test_a_palette_shows_its_colours() -> None:
    image = Image.fromarray(SHOWN).quantize(15, dither=Image.Dither.NONE)
    for form in ("PNG", "GIF", "TIFF", "BMP"):
        assert np.array_equal(read(image, form), np.asarray(image.convert("RGB")))
    assert np.array_equal(read(Image.fromarray(SHOWN[..., 0] > 99)), np.repeat((SHOWN[..., :1] > 99) * 255, 3, -1))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_shows_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (4, 4), (value, value, value)) for value in (10, 120, 250)]
    lossless = {"lossless": True} if form == "WEBP" else {}
    assert (read(frames[0], form, save_all=True, append_images=frames[1:], **lossless) == 10).all()
