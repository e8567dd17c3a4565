"""Machines with other fonts than this one, for what fonts could decide."""

from pathlib import Path

INSTALLED = Path("/usr/share/fonts")
# What a machine may have: a bare Debian, most other systems, and letters as wide as in
# the fonts that some readers need. The first font writes words, the other one code.
FONTS = {
    "DejaVu": {"DejaVu Sans": "DejaVuSans[.-]*", "DejaVu Sans Mono": "DejaVuSansMono*"},
    "Liberation": {
        "Liberation Sans": "LiberationSans-*",
        "Liberation Mono": "LiberationMono*",
    },
    "wide": {"DejaVu Sans": "DejaVuSans-Bold.*", "DejaVu Sans Mono": "DejaVuSansMono*"},
}
FONTCONFIG = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <dir>{folder}</dir>
  <cachedir>{folder}/cache</cachedir>
  <match target="font">
    <edit name="hintstyle" mode="assign"><const>hintslight</const></edit>
  </match>
  <match target="pattern">
    <test name="family"><string>monospace</string></test>
    <edit name="family" mode="assign"><string>{code}</string></edit>
  </match>
  <match target="pattern">
    <edit name="family" mode="append"><string>{words}</string></edit>
  </match>
</fontconfig>
"""


def are_here(fonts: str) -> bool:
    """Has this machine these fonts?"""
    return all(any(INSTALLED.rglob(files)) for files in FONTS[fonts].values())


def only(fonts: str, folder: Path) -> dict[str, str]:
    """The environment of a machine with these fonts alone; {} if they are not here."""
    if not are_here(fonts):
        return {}
    for files in FONTS[fonts].values():
        for file in INSTALLED.rglob(files):
            (folder / file.name).symlink_to(file)
    words, code = FONTS[fonts]
    settings = folder / "fonts.conf"
    settings.write_text(FONTCONFIG.format(folder=folder, words=words, code=code))
    return {"FONTCONFIG_FILE": str(settings)}
