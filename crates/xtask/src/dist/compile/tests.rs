//! That no path of the machine ends in a program, tried with a small one: a release build takes too long for a test.

use super::*;

/// Compiles a program whose only content is where its source lies, as `compile` would, in that folder.
fn small(dir: &Path) -> Vec<u8> {
    let (source, target) = (dir.join("source"), dir.join("target"));
    fs::create_dir_all(source.join("src")).unwrap();
    fs::create_dir_all(&target).unwrap();
    fs::write(
        source.join("src/main.rs"),
        "fn main() {\n    println!(\"{}\", std::panic::Location::caller());\n    None::<u8>.expect(file!());\n}\n",
    )
    .unwrap();
    let names = renamed(&source, &target).unwrap();
    let mut command = Command::new("rustc");
    command.current_dir(&source).args(["-Copt-level=1", "-Ccodegen-units=1", "-Cstrip=symbols", "--edition=2024", "-o"]);
    command.arg(target.join("small")).args(flags(&names, "--remap-path-prefix=")).arg(source.join("src/main.rs"));
    capture(&mut command).unwrap();
    fs::read(target.join("small")).unwrap()
}

#[test]
fn the_same_source_in_two_folders_gives_the_same_bytes() {
    let (here, there) =
        (tempfile::tempdir().unwrap(), tempfile::Builder::new().prefix("a-much-longer-name-than-the-first").tempdir().unwrap());
    let (one, other) = (small(here.path()), small(there.path()));
    assert!(one == other, "{} and {} bytes", one.len(), other.len());
    let text = String::from_utf8_lossy(&one).into_owned();
    assert!(text.contains("/lockgate/src/main.rs"), "the source has its other name");
    assert!(!text.contains(here.path().to_str().unwrap()), "and not that of this machine");
}

#[test]
fn flags_of_the_person_who_builds_do_not_count() {
    let command = cargo(Path::new("/"));
    let names: Vec<String> = command.get_envs().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    assert!(names.iter().all(|name| KEPT.contains(&name.as_str()) || name == "LC_ALL" || name == "TZ"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("FLAGS")));
}

#[test]
fn a_folder_whose_name_the_compilers_would_misread_is_refused() {
    assert!(renamed(Path::new("/a b"), Path::new("/t")).is_err());
    assert!(renamed(Path::new("/a=b"), Path::new("/t")).is_err());
    assert!(renamed(Path::new("/a-b"), Path::new("/t")).is_ok());
}

#[test]
fn the_sources_are_those_of_the_commit_and_nothing_else() {
    let root = Root::find().unwrap();
    let dir = tempfile::tempdir().unwrap();
    unpack(&root, "HEAD", &dir.path().join("source")).unwrap();
    assert!(
        dir.path().join("source/Cargo.lock").exists()
            && !dir.path().join("source/.git").exists()
            && !dir.path().join("source/target").exists()
    );
    assert!(unpack(&root, "no-such-commit", &dir.path().join("other")).is_err());
}
