//! The table of hazards at the head of the crate: it is complete, and the tests it names exist.

use std::path::Path;

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("the entry is readable").path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("the file is readable text"));
        }
    }
}

#[test]
fn each_hazard_has_its_test_or_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("src/lib.rs")).expect("the file is readable text");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("//! | H")).collect();
    let mut all = String::new();
    sources(&root.join("src"), &mut all);
    sources(&root.join("tests"), &mut all);
    for (number, row) in (1..).zip(&rows) {
        assert!(row.starts_with(&format!("//! | H{number} | ")), "H{number} is missing: {row}");
        let why = row.split(" | ").nth(3).expect("a hazard has three columns");
        // What has underscores and is no path is the name of a test.
        let names = why.split('`').skip(1).step_by(2);
        for name in names.filter(|name| name.contains('_') && !name.contains(|c: char| ":[]".contains(c))) {
            assert!(all.contains(&format!("fn {name}(")), "H{number} names {name}, which does not exist");
        }
    }
    assert_eq!(rows.len(), 21);
}
