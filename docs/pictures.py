"""Photographs the page of a run for docs/reports.md: `python docs/pictures.py outputs/DATE/TIME`. Needs Chromium."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).parent / "figures" / "report.png"

if __name__ == "__main__":
    page = (Path(sys.argv[1]) / "report.html").resolve()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", "--window-size=1200,1400", "--virtual-time-budget=4000"]
        subprocess.run([*command, f"--screenshot={PICTURE}", page.as_uri()], check=True)
    Image.open(PICTURE).convert("RGB").quantize(96).save(PICTURE, optimize=True)
