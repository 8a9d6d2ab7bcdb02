//! Scripts: written to a file of mode 0700 in the attempt's private directory and executed.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use hodei_proto::v1::Script;

/// The file's name; hidden, since the job's working directory is the same.
const NAME: &str = ".hodei-script";

/// The text of the file: the interpreter's line, and for the default the strict mode of bash.
#[must_use]
pub fn text(script: &Script) -> String {
    let content = &script.content;
    match script.interpreter.trim() {
        "" if content.starts_with("#!") => content.clone(),
        "" => format!("#!/bin/bash\nset -euo pipefail\n{content}"),
        interpreter if interpreter.starts_with('/') => format!("#!{interpreter}\n{content}"),
        interpreter => format!("#!/usr/bin/env {interpreter}\n{content}"),
    }
}

/// Writes the file.
pub fn write(dir: &Path, script: &Script) -> io::Result<PathBuf> {
    let path = dir.join(NAME);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o700).open(&path)?;
    file.write_all(text(script).as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_comes_first() {
        let text = |interpreter: &str, content: &str| {
            text(&Script { interpreter: interpreter.into(), content: content.into() })
        };
        assert_eq!(text("", "echo"), "#!/bin/bash\nset -euo pipefail\necho");
        assert_eq!(text("", "#!/bin/sh\necho"), "#!/bin/sh\necho");
        assert_eq!(text("/usr/bin/perl -w", "x"), "#!/usr/bin/perl -w\nx");
        assert_eq!(text("python3", "x"), "#!/usr/bin/env python3\nx");
    }
}
