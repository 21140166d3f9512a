"""MkDocs' hook: the site has the pages that lie elsewhere in the repository.

They are written for readers of the repository, as are links to them and from
them. A link to what is no page, such as a script, is left as its text.
"""

import posixpath
import re

from mkdocs.structure.files import File

# What each is called in the site.
PAGES = {
  "CHANGELOG.md": "changelog.md",
  "CONTRIBUTING.md": "contributing.md",
  "launch/README.md": "launch.md",
  "notebooks/README.md": "notebooks.md",
  "tests/README.md": "tests.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files, config):
  """Adds the pages."""
  root = posixpath.dirname(config.config_file_path)
  for source, name in PAGES.items():
    with open(posixpath.join(root, source), encoding="utf-8") as file:
      text = file.read()
    files.append(File.generated(config, name, content=text))
  return files


def on_page_markdown(markdown, page, **_):
  """Has links lead to where their pages are in the site."""
  name = page.file.src_uri
  places = {site: source for source, site in PAGES.items()}
  source = places.get(name, f"docs/{name}")

  def link(match):
    text, path, anchor = match.groups()
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if target in PAGES:
      target = PAGES[target]
    elif target.startswith("docs/"):
      target = target.removeprefix("docs/")
    else:
      return text
    path = posixpath.relpath(target, posixpath.dirname(name) or ".")
    return f"[{text}]({path}{anchor or ''})"

  return _LINK.sub(link, markdown)
