//! Writes the custom resource definitions into a folder, or checks that they are there.
//!
//! ```text
//! write_crds DIR            write one file for each definition
//! write_crds --check DIR    exit 1 and name the files that differ
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: write_crds [--check] DIR";

fn main() -> ExitCode {
    let (mut check, mut dir) = (false, None);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--check" => check = true,
            other if other.starts_with('-') || dir.is_some() => return usage(),
            other => dir = Some(PathBuf::from(other)),
        }
    }
    let Some(dir) = dir else { return usage() };
    let outcome = if check {
        differing(&dir)
    } else {
        write(&dir).map(|()| Vec::new())
    };
    match outcome {
        Ok(files) if files.is_empty() => ExitCode::SUCCESS,
        Ok(files) => {
            for file in files {
                tell(&format!(
                    "{file} differs from the Rust types: run `make crds`"
                ));
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            tell(&format!("{}: {error}", dir.display()));
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    tell(USAGE);
    ExitCode::from(2)
}

fn tell(message: &str) {
    // Nothing is left to do when standard error is gone.
    let _ = writeln!(io::stderr(), "{message}");
}

fn write(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for (file, yaml) in bellrock_api::crd_yaml() {
        fs::write(dir.join(file), yaml)?;
    }
    Ok(())
}

/// Paths of the files that are missing, out of date, or left over from a kind that is gone.
fn differing(dir: &Path) -> io::Result<Vec<String>> {
    let mut expected = bellrock_api::crd_yaml();
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let known = expected
            .iter()
            .position(|(file, _)| Some(file) == name.as_ref());
        match known.map(|index| expected.swap_remove(index)) {
            Some((_, yaml)) if fs::read(&path)? == yaml.as_bytes() => {}
            Some(_) | None => files.push(path.display().to_string()),
        }
    }
    files.extend(
        expected
            .into_iter()
            .map(|(file, _)| dir.join(file).display().to_string()),
    );
    files.sort();
    Ok(files)
}
