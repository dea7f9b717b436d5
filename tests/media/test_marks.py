"""Marks in the metadata of videos, read back by other programs; and C2PA manifests."""

import dataclasses
import datetime
import json
import shutil
import subprocess
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
from click.testing import CliRunner

from stages.media.marks import COMPOSITE, MADE, Marks, boxes, marks_of, read_marks, read_xmp
from stages.media.write import VideoWriter
from stages.sign import main as sign_command
from stages.verify import main as verify_command
from tests import zoo

PROMPT = 'a "red" ball & <b>boxes</b>\n= ein Öl, 红色\x07'
MARKS = Marks("Kinemake", "1.2.3", ("wan 5b",), ("ab" * 32,), (42, 43), (PROMPT, "then blue"), MADE)


def write(path, marks=MARKS, **options):
    rgb = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), dtype=np.uint8)
    with VideoWriter(path, 48, 32, 8, marks=marks, **options) as video:
        for frame in rgb:
            video.write(frame)
    return path


def ffmpeg_tags(path) -> dict[str, str]:
    """The tags of a video as the ffmpeg program, with ffprobe's library, reads them."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", path, "-f", "ffmetadata", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    plain = text.replace("\\\n", "\n").replace("\\=", "=").replace("\\;", ";").replace("\\#", "#").replace("\\\\", "\\")
    return dict(line.split("=", 1) for line in plain.splitlines() if "=" in line)


@pytest.mark.parametrize("options", [{}, {"growing": True}, {"times": [0, 0.1, 0.3, 0.4, 0.8]}])
def test_marks_are_read_back(options, tmp_path):
    path = write(tmp_path / "a.mp4", **options)
    assert read_marks(path) == MARKS
    assert json.loads(ffmpeg_tags(path)["comment"])["prompt"] == [PROMPT, "then blue"]
    assert ffmpeg_tags(path)["description"] == "Made by a generative model (wan 5b) with Kinemake 1.2.3."
    assert list(boxes(path))[-1][0] == b"uuid" and list(boxes(path))[-1][2] == path.stat().st_size


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not here: apt install libimage-exiftool-perl")
def test_exiftool_reads_the_terms_of_the_iptc(tmp_path):
    path = write(tmp_path / "a.mp4")
    command = ["exiftool", "-json", "-struct", "-XMP:all", path]
    said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)[0]
    assert said["DigitalSourceType"] == MADE and said["CreatorTool"] == "Kinemake 1.2.3"
    assert said["AISystemUsed"] == "wan 5b" and said["AISystemVersionUsed"] == "ab" * 32
    assert said["AIPromptInformation"] == PROMPT.replace("\x07", "") + "\nthen blue"
    warned = subprocess.run(["exiftool", "-validate", "-warning", path], capture_output=True, text=True).stdout
    assert "XMP" not in warned


@pytest.mark.skipif(not shutil.which("ffprobe"), reason="ffprobe is not here: apt install ffmpeg")
def test_ffprobe_reads_the_tags(tmp_path):
    path = write(tmp_path / "a.mp4")
    command = ["ffprobe", "-loglevel", "error", "-show_format", "-of", "json", path]
    tags = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["format"]["tags"]
    assert json.loads(tags["comment"])["seed"] == [42, 43]


def test_marks_change_no_pixel_and_the_same_marks_give_the_same_bytes(tmp_path):
    marked, again, bare = write(tmp_path / "a.mp4"), write(tmp_path / "b.mp4"), write(tmp_path / "c.mp4", marks=None)
    assert marked.read_bytes() == again.read_bytes()
    assert np.array_equal(zoo.rgb_by_ffmpeg(marked, (48, 32)), zoo.rgb_by_ffmpeg(bare, (48, 32)))
    assert read_marks(bare) is None and read_xmp(bare) == ""


def test_a_private_video_has_no_prompt_and_one_with_a_source_is_composite(tmp_path):
    path = write(tmp_path / "a.mp4", marks=Marks("Kinemake", "1", ("wan 5b",), (), (1,), (), COMPOSITE))
    assert "AIPromptInformation" not in read_xmp(path) and COMPOSITE in read_xmp(path)
    assert ffmpeg_tags(path)["description"].startswith("Made from a video by a generative model")


def test_the_first_20000_characters_of_all_prompts_are_in_the_metadata():
    fields = {"family": "wan", "variant": "5b", "seed": 1, "prompt": ""}
    parts = ["a" * 15_000, "b" * 15_000, "c"]
    clip = SimpleNamespace(kind="clip", provenance=[], fields={**fields, "part_prompts": parts})
    assert marks_of([clip], private=False).prompt == ("a" * 15_000, "b" * 5_000)
    assert marks_of([clip], private=True).prompt == ()


def test_files_of_other_programs_have_no_marks(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\0nonsense")
    assert read_marks(tmp_path / "a.mp4") is None and read_xmp(tmp_path / "a.mp4") == ""
    (tmp_path / "empty.mp4").touch()
    assert f"WRONG: {tmp_path}/empty.mp4 is empty" in CliRunner().invoke(verify_command, [f"{tmp_path}/empty.mp4"]).output
    (tmp_path / "b.mp4").write_bytes(b"\0\0\0\1uuid\0\0")  # ends within the 64 bits of a length
    assert read_xmp(tmp_path / "b.mp4") == ""


@pytest.mark.parametrize(
    "wrong",
    [{"seed": 5}, {"model": [1]}, {"source": None}, {"prompt": "red"}, {"seed": ["5"]}, {"seed": [True]}, {"source": ""}],
)
def test_marks_of_other_types_are_those_of_another_program(tmp_path, wrong):
    class Foreign(Marks):
        def tags(self):
            return {"comment": json.dumps({**json.loads(super().tags()["comment"]), **wrong})}

    path = write(tmp_path / "a.mp4", Foreign(**dataclasses.asdict(MARKS)))
    assert read_marks(path) is None
    result = CliRunner().invoke(verify_command, [str(path)])
    assert result.exit_code == 1 and result.output.startswith("WRONG: ")


def test_verify_says_what_the_metadata_says_without_codes_for_the_terminal(tmp_path):
    path = write(tmp_path / "a.mp4", dataclasses.replace(MARKS, model=("wan \x1b[31m5b",)))
    output = CliRunner().invoke(verify_command, [str(path)]).output
    assert "Made by a generative model (wan  [31m5b) with Kinemake 1.2.3, seed 42, 43, trainedAlgorithmicMedia)" in output
    copy = tmp_path / "copy.mp4"  # which keeps the tags, and not the box of the XMP
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", path, "-c", "copy", copy]
    subprocess.run(command, check=True)
    assert "which its XMP does not say" in CliRunner().invoke(verify_command, [str(copy)]).output


# ---------------------------------------------------------------------------------------------------------------- C2PA


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    """Files of a private key and of its certificate chain, of an authority that is made here."""
    pytest.importorskip("c2pa", reason="c2pa-python is not here: pip install 'kinemake[c2pa]'")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    folder = tmp_path_factory.mktemp("signer")
    now = datetime.datetime.now(datetime.UTC)

    def name(text):
        return x509.Name([x509.NameAttribute(oid, text) for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)])

    def certificate(key, subject, issuer, issuer_key, is_authority):
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        usage |= {"encipher_only": False, "decipher_only": False}
        usage |= {"digital_signature": not is_authority, "key_cert_sign": is_authority, "crl_sign": is_authority}
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.KeyUsage(**usage), critical=True)
        )
        if not is_authority:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = certificate(own, "A Signer", "Authority", authority, False)
    (folder / "chain.pem").write_bytes(chain + certificate(authority, "Authority", "Authority", authority, True))
    pem = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    return ["--key", folder / "key.pem", "--certificates", folder / "chain.pem"]


def call(command, *arguments):
    return CliRunner().invoke(command, [*map(str, arguments)])


def test_a_signed_copy_is_valid_and_has_the_same_pixels(signer, tmp_path):
    import c2pa

    film = write(tmp_path / "a.mp4")
    result = call(sign_command, film, *signer)
    copy = tmp_path / "a.signed.mp4"
    assert result.exit_code == 0, result.output
    manifest = json.loads(c2pa.Reader(str(copy)).json())
    assert manifest["validation_state"] in ("Valid", "Trusted")
    assertions = {one["label"]: one["data"] for one in manifest["manifests"][manifest["active_manifest"]]["assertions"]}
    assert assertions["c2pa.actions.v2"]["actions"][0]["digitalSourceType"] == MADE
    assert assertions["org.kinemake.marks"]["seed"] == ["42", "43"]
    assert np.array_equal(zoo.rgb_by_ffmpeg(film, (48, 32)), zoo.rgb_by_ffmpeg(copy, (48, 32)))
    assert read_marks(copy) == MARKS and film.read_bytes() == write(tmp_path / "b.mp4").read_bytes()
    told = call(verify_command, copy)
    assert told.exit_code == 0 and "its C2PA manifest: valid, signed by A Signer" in told.output, told.output
    assert "its metadata: Made by a generative model (wan 5b) with Kinemake 1.2.3, seed 42, 43" in told.output


def test_a_signed_copy_that_was_changed_is_not_valid(signer, tmp_path):
    film = write(tmp_path / "a.mp4")
    assert call(sign_command, film, *signer, "-o", tmp_path / "out").exit_code == 0
    copy = tmp_path / "out/a.mp4"
    content = bytearray(copy.read_bytes())
    start = next(start for kind, start, _ in boxes(copy) if kind == b"mdat")
    content[start + 50] ^= 1
    copy.write_bytes(content)
    told = call(verify_command, copy)
    assert told.exit_code == 1 and "NOT valid (assertion.bmffHash.mismatch)" in told.output, told.output


def test_only_a_film_that_says_what_made_it_is_signed(signer, tmp_path):
    """The manifest would state of any other video that Kinemake's models made it."""
    strange = zoo.plain(tmp_path, "camera.mp4", frames=3)
    film = write(tmp_path / "a.mp4")
    result = call(sign_command, strange, film, *signer)
    assert result.exit_code == 1 and f"{strange} does not say that Kinemake made it" in result.output
    assert (tmp_path / "a.signed.mp4").exists()  # the other film is signed all the same
    result = call(sign_command, tmp_path / "a.signed.mp4", *signer)
    assert result.exit_code == 1 and "a.signed.mp4 is already signed, by A Signer" in result.output


def test_a_copy_that_cannot_be_signed_is_not_there(signer, tmp_path):
    film = write(tmp_path / "a.mp4")
    chain = signer[3].read_bytes()
    lone = tmp_path / "lone.pem"  # the authority's own certificate, which may not sign
    lone.write_bytes(b"-----BEGIN CERTIFICATE-----" + chain.rpartition(b"-----BEGIN CERTIFICATE-----")[2])
    assert call(sign_command, film, *signer[:3], lone).exit_code != 0
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["a.mp4"]
    assert call(sign_command, film, *signer).exit_code == 0


def test_a_key_in_another_form_is_refused_with_the_command_that_converts_it(signer, tmp_path):
    from cryptography.hazmat.primitives import serialization

    film, (_, key, *chain) = write(tmp_path / "a.mp4"), signer
    own = serialization.load_pem_private_key(key.read_bytes(), None)
    form = serialization.PrivateFormat.TraditionalOpenSSL  # SEC 1, as openssl ecparam -genkey writes it
    raw = tmp_path / "raw.pem"
    raw.write_bytes(own.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    result = call(sign_command, film, "--key", raw, *chain)
    assert result.exit_code == 1 and f"openssl pkcs8 -topk8 -nocrypt -in {raw}" in result.output
    if shutil.which("openssl"):
        command = ["openssl", "pkcs8", "-topk8", "-nocrypt", "-in", raw, "-out", tmp_path / "key.pem"]
        subprocess.run(command, check=True)
        assert call(sign_command, film, "--key", tmp_path / "key.pem", *chain).exit_code == 0


def test_what_cannot_sign_is_one_sentence(signer, tmp_path):
    film = write(tmp_path / "a.mp4")
    (tmp_path / "no.pem").write_text("no key")
    result = call(sign_command, film, "--key", tmp_path / "no.pem", "--certificates", tmp_path / "no.pem")
    assert result.exit_code != 0 and "error: " in result.output and "Traceback" not in result.output
    result = call(sign_command, film, *signer, "--algorithm", "rot13")
    assert result.exit_code == 2 and "there is no algorithm 'rot13'" in result.output
