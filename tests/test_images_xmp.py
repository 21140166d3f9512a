"""XMP for a picture of another size: what changes, and nothing else."""

import itertools
import re
import xml.etree.ElementTree as ET

import pytest
from PIL import Image as PilImage

from esrgan_jax import images
from esrgan_jax.images import Image, Metadata, xmp
from tests import mutation
from tests.image_builders import noise, saved

SPACES = {
  "x": "adobe:ns:meta/",
  "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
  "tiff": "http://ns.adobe.com/tiff/1.0/",
  "exif": "http://ns.adobe.com/exif/1.0/",
  "dc": "http://purl.org/dc/elements/1.1/",
  "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
  "GPano": "http://ns.google.com/photos/1.0/panorama/",
  "GCamera": "http://ns.google.com/photos/1.0/camera/",
  "OpCamera": "http://ns.oplus.com/photos/1.0/camera/",
  "Container": "http://ns.google.com/photos/1.0/container/",
  "Item": "http://ns.google.com/photos/1.0/container/item/",
  "hdrgm": "http://ns.adobe.com/hdr-gain-map/1.0/",
  "HDRGainMap": "http://ns.apple.com/HDRGainMap/1.0/",
  "xmpNote": "http://ns.adobe.com/xmp/note/",
  "stDim": "http://ns.adobe.com/xap/1.0/sType/Dimensions#",
  "stArea": "http://ns.adobe.com/xmp/sType/Area#",
  "mwg-rs": "http://www.metadataworkinggroup.com/schemas/regions/",
  "xmpTPg": "http://ns.adobe.com/xap/1.0/t/pg/",
}


def packet(attributes="", content="", renamed=()):
  """A packet of one description; `renamed` are other prefixes."""
  names = {prefix: prefix for prefix in SPACES} | dict(renamed)
  spaces = " ".join(f'xmlns:{names[p]}="{u}"' for p, u in SPACES.items())
  text = (
    f"<x:xmpmeta {spaces}><rdf:RDF><rdf:Description rdf:about=''"
    f" {attributes}>{content}</rdf:Description></rdf:RDF></x:xmpmeta>"
  )
  for before, after in dict(renamed).items():
    text = text.replace(f" {before}:", f" {after}:")
    text = text.replace(f"<{before}:", f"<{after}:")
    text = text.replace(f"</{before}:", f"</{after}:")
  head = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
  return f'{head}{text}\n   <?xpacket end="w"?>'.encode()


def properties(data):
  """Returns what another parser finds: {namespace and name: [values]}."""
  found = {}
  for element in ET.fromstring(data).iter():
    found.setdefault(element.tag, []).append((element.text or "").strip())
    for name, value in element.attrib.items():
      found.setdefault(name, []).append(value)
  return found


def fitted(data):
  """Fits to twice the width and thrice the height of 24 x 12 pixels."""
  result = xmp.fit(data, (24, 12), (48, 36))
  return properties(result.packet), result.notes


# Property, before, after.
VALUES = [
  ("tiff:ImageWidth", "7", "48"),
  ("tiff:ImageLength", "7", "36"),
  ("exif:PixelXDimension", "7", "48"),
  ("exif:PixelYDimension", "7", "36"),
  ("tiff:Orientation", "6", "1"),
  ("GPano:FullPanoWidthPixels", "100", "200"),
  ("GPano:FullPanoHeightPixels", "50", "150"),
  ("GPano:CroppedAreaImageWidthPixels", "24", "48"),
  ("GPano:CroppedAreaImageHeightPixels", " 12 ", "36"),
  ("GPano:CroppedAreaLeftPixels", "11", "22"),
  ("GPano:CroppedAreaTopPixels", "0", "0"),
  ("GPano:LargestValidInteriorRectTop", "3.0", "9"),
  ("GPano:ProjectionType", "equirectangular", "equirectangular"),
  ("GPano:InitialViewHeadingDegrees", "180", "180"),
  ("GPano:FullPanoWidthPixels", "wide", "wide"),
  ("crs:CropLeft", "0.25", "0.25"),
  ("crs:CropWidth", "10", "10"),
  ("dc:format", "image/jpeg", "image/jpeg"),
]


@pytest.mark.parametrize("renamed", [(), {"GPano": "ns1", "tiff": "t"}.items()])
@pytest.mark.parametrize(("name", "before", "after"), VALUES)
def test_values_as_attributes_and_as_elements(name, before, after, renamed):
  prefix, local = name.split(":")
  full = f"{{{SPACES[prefix]}}}{local}"
  for data in (
    packet(f'{name}="{before}"', renamed=renamed),
    packet(f"{name} = '{before}'", renamed=renamed),
    packet(content=f"<{name}>{before}</{name}>", renamed=renamed),
    packet(content=f"<{name} xml:lang='x' >{before}</{name} >"),
  ):
    got, notes = fitted(data)
    assert got[full] == [after]
    assert notes == ()


def test_all_else_stays_letter_by_letter():
  text = "<dc:title>a &amp; <![CDATA[<tiff:Orientation>6]]> \u5199</dc:title>"
  data = packet(
    "dc:a='1'\n\t dc:b=\"x>y\"", f"<!-- tiff:x -->{text}<tiff:Make/>"
  )
  # Of namespaces that nothing is in any more, there is no word either.
  data = re.sub(rb' xmlns:(Container|Item|hdrgm|HDRGainMap)="[^"]*"', b"", data)
  assert xmp.fit(data, (24, 12), (48, 36)) == (data, ())
  # Of a changed one, too, with fill and marks around it.
  data = data.replace(b"dc:a='1'", b'tiff:ImageWidth="24"')
  changed = data.replace(b'ImageWidth="24"', b'ImageWidth="48"')
  for raw in (data, data + b"\0 \n", b"\xef\xbb\xbf" + data):
    assert xmp.fit(raw, (24, 12), (48, 36)).packet == changed
  for encoding in ("utf-16", "utf-16-be", "utf-32-le"):
    raw = data.decode().encode(encoding)
    assert xmp.fit(raw, (24, 12), (48, 36)).packet == changed


CLAIMS = {
  "motion": (
    'GCamera:MotionPhoto="1" GCamera:MicroVideoOffset="500"'
    ' OpCamera:MotionPhotoOwner="o" OpCamera:OLivePhotoVersion="2"',
    "",
    "video",
  ),
  "gain map": (
    'hdrgm:Version="1.0"',
    "<hdrgm:GainMapMax><rdf:Seq><rdf:li>1</rdf:li></rdf:Seq></hdrgm:GainMapMax>"
    "<HDRGainMap:HDRGainMapVersion>65536</HDRGainMap:HDRGainMapVersion>"
    "<hdrgm:Gamma/><hdrgm:OffsetSDR a='>' />",
    "gain map",
  ),
  "container": (
    "",
    "<Container:Directory><rdf:Seq><rdf:li rdf:parseType='Resource'>"
    "<Container:Item Item:Mime='a>b' Item:Length='9'/>"
    "<tiff:ImageWidth>5</tiff:ImageWidth></rdf:li></rdf:Seq>"
    "</Container:Directory >",
    "further pictures or videos",
  ),
  "extended": ('xmpNote:HasExtendedXMP="0123"', "", "extended XMP"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_of_what_is_not_there_are_removed(name):
  attributes, content, note = CLAIMS[name]
  more = 'tiff:ImageWidth="24" GCamera:BurstID="b"'
  got, notes = fitted(
    packet(f"{attributes} {more}", f"{content}<dc:title>t</dc:title>")
  )
  assert len(notes) == 1
  assert note in notes[0]
  rest = properties(packet(more, "<dc:title>t</dc:title>"))
  rest[f"{{{SPACES['tiff']}}}ImageWidth"] = ["48"]
  assert got == rest


def test_thumbnails_of_the_old_picture_are_removed():
  inner = "<rdf:Alt><rdf:li xmpGImg:image='AAAA'/></rdf:Alt>"
  before = packet(content=f"<xmp:Thumbnails>{inner}</xmp:Thumbnails>")
  got = xmp.fit(before, (9, 7), (18, 14))
  assert got == xmp.fit(packet(), (9, 7), (18, 14))
  assert got.notes == ()


def test_all_claims_at_once():
  attributes = " ".join(attributes for attributes, _, _ in CLAIMS.values())
  content = "".join(content for _, content, _ in CLAIMS.values())
  got, notes = fitted(packet(attributes, content))
  assert got == properties(packet())
  assert len(notes) == 3  # The container lists what the others tell of.


def test_regions_keep_their_parts_of_the_whole():
  area = '<rdf:li><mwg-rs:Area stArea:x="0.5" stArea:w="0.1"/></rdf:li>'
  for size in (
    "<mwg-rs:AppliedToDimensions stDim:w='24' stDim:h='12'"
    " stDim:unit='pixel'/>",
    "<mwg-rs:AppliedToDimensions rdf:parseType='Resource'><stDim:w>24</stDim:w>"
    "<stDim:h>12</stDim:h><stDim:unit>pixel</stDim:unit>"
    "</mwg-rs:AppliedToDimensions>",
  ):
    got, _ = fitted(packet(content=size + area))
    assert got[f"{{{SPACES['stDim']}}}w"] == ["48"]
    assert got[f"{{{SPACES['stDim']}}}h"] == ["36"]
    assert got[f"{{{SPACES['stArea']}}}x"] == ["0.5"]
  page = '<xmpTPg:MaxPageSize stDim:w="24" stDim:h="12" stDim:unit="Inches"/>'
  got, _ = fitted(packet(content=page))
  assert got[f"{{{SPACES['stDim']}}}w"] == ["24"]


@pytest.mark.parametrize(("units", "width"), [("0", "20"), ("1", "10")])
def test_a_crop_in_pixels(units, width):
  got, _ = fitted(packet(f'crs:CropWidth="10" crs:CropUnits="{units}"'))
  assert got[f"{{{SPACES['crs']}}}CropWidth"] == [width]


def test_damaged_and_hostile_packets_are_left_out_and_told():
  for data in (
    b"\0" * 100,
    b"no XML",
    packet()[:-40],
    packet('tiff:ImageWidth="&x;"'),
    b'<!DOCTYPE a [<!ENTITY x "y">]>' + packet()[60:],
    b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
    b"<a b='1' b='2'/>",
    b"\xff\xfe\x00",
    b"<a>" * 1000 + b"</a>" * 1000,
    b"<a>" + b"<b/>" * 140_000 + b"</a>",
    b"<a " + b" ".join(b"b%d='1'" % i for i in range(140_000)) + b"/>",
    b"<a>" + b"".join(b"<a xmlns:a%d='1'>" % i for i in range(2000)),
  ):
    with mutation.bounded(4, 500):
      result = xmp.fit(data, (24, 12), (48, 36))
    assert result == (None, ("its XMP is damaged, and left out",))
  large = b"<a>" + b" " * 2**24 + b"</a>"
  assert "is left out" in xmp.fit(large, (1, 1), (2, 2)).notes[0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_files_get_the_sizes_of_the_result(tmp_path, suffix):
  attributes = 'exif:PixelXDimension="5" GPano:FullPanoWidthPixels="24"'
  data = packet(attributes + ' GCamera:MotionPhoto="1"')
  picture = PilImage.fromarray(noise(12, 24, 3))
  (tmp_path / "a.jpg").write_bytes(saved(picture, "JPEG", xmp=data))
  image = images.read_image(tmp_path / "a.jpg")
  assert image.notes == ("its video, of a motion photo, is left out",)
  assert b'PixelXDimension="24"' in image.metadata.xmp
  large = Image(noise(36, 48, 3), None, image.metadata)
  assert images.write_image(tmp_path / f"b.{suffix}", large) == ()
  with PilImage.open(tmp_path / f"b.{suffix}") as written:
    got = written.info.get("xmp") or written.info["XML:com.adobe.xmp"].encode()
  expected = 'exif:PixelXDimension="48" GPano:FullPanoWidthPixels="48"'
  assert properties(got) == properties(packet(expected))
  # Read again, it is as it was written.
  assert images.read_image(tmp_path / f"b.{suffix}").metadata.xmp == got


def test_sides_at_any_ratio_are_whole_numbers():
  for width, new in itertools.product((1, 7, 24), (1, 5, 48, 1000)):
    data = packet(f'GPano:CroppedAreaImageWidthPixels="{width}"')
    result = xmp.fit(data, (width, 9), (new, 9)).packet
    got = properties(result)
    name = f"{{{SPACES['GPano']}}}CroppedAreaImageWidthPixels"
    assert got[name] == [str(new)]


def test_metadata_without_a_file_has_the_size_of_its_pixels(tmp_path):
  metadata = Metadata(xmp=packet('GPano:FullPanoWidthPixels="24"'))
  images.write_image(tmp_path / "a.png", Image(noise(4, 6, 3), None, metadata))
  got = images.read_image(tmp_path / "a.png").metadata.xmp
  assert b'FullPanoWidthPixels="24"' in got
