//! The house's rules as tests: which crate may name which (README, the floors), and how long a file may be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each crate may depend on, of ours.
const FLOORS: &[(&str, &[&str])] = &[
    ("devices", &[]),
    ("accel", &["devices"]),
    ("accel_kvm", &["accel", "devices"]),
    ("accel_tcg", &["accel", "devices"]),
    ("bivisor", &["accel", "accel_kvm", "accel_tcg", "devices"]),
];

const MAX_LINES: usize = 600;

/// Files that may be longer, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn arrows_never_point_up() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let mut edges = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages is a list") {
        let name = package["name"].as_str().expect("a package has a name").to_owned();
        let dependencies = package["dependencies"].as_array().expect("dependencies is a list");
        // A local package has no source.
        let ours: BTreeSet<String> = dependencies
            .iter()
            .filter(|dependency| dependency["source"].is_null())
            .map(|dependency| dependency["name"].as_str().expect("a dependency has a name").to_owned())
            .collect();
        edges.insert(name, ours);
    }
    let allowed: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    assert_eq!(
        edges.keys().map(String::as_str).collect::<Vec<_>>(),
        allowed.keys().copied().collect::<Vec<_>>(),
        "a crate without its place in the picture"
    );
    for (name, ours) in edges {
        for dependency in ours {
            assert!(
                allowed[name.as_str()].contains(&dependency.as_str()),
                "{name} may not depend on {dependency}"
            );
        }
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("the entry is readable").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                sources(&path, found);
            }
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

fn each_source(mut check: impl FnMut(&str, &str) -> Option<String>) {
    let mut files = Vec::new();
    for folder in ["src", "accel", "devices", "resources", "tests"] {
        if root().join(folder).is_dir() {
            sources(&root().join(folder), &mut files);
        }
    }
    assert!(files.len() > 20, "only {} source files were found", files.len());
    let complaints: Vec<String> = files
        .iter()
        .filter_map(|path| {
            let name =
                path.strip_prefix(root()).expect("found below the root").to_string_lossy().into_owned();
            check(&name, &std::fs::read_to_string(path).expect("the file is readable text"))
        })
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn files_are_short() {
    each_source(|name, text| {
        let lines = text.lines().count();
        let excused = LONG_FILES.iter().any(|(file, _)| *file == name);
        (lines > MAX_LINES && !excused).then(|| format!("{name} has {lines} lines (at most {MAX_LINES})"))
    });
    let main = std::fs::read_to_string(root().join("src/main.rs")).expect("main.rs is readable");
    assert!(main.lines().count() <= 30, "main.rs is a page at most");
}

#[test]
fn files_say_what_they_are() {
    // A `tests.rs` is the tests of the file beside it.
    each_source(|name, text| {
        (!text.starts_with("//! ") && !name.ends_with("/tests.rs"))
            .then(|| format!("{name} does not open with `//! `"))
    });
}

#[test]
fn no_mod_rs() {
    each_source(|name, _| name.ends_with("/mod.rs").then(|| format!("{name}: modules are x.rs and x/")));
}
