use super::*;
use std::collections::BTreeMap;

/// A data directory with an empty log, as a server leaves it, and other files.
fn data_directory(at: &Path) -> PathBuf {
    let data = at.join("data");
    drop(EventLog::open(&data.join(LOG)).unwrap());
    for (path, mode) in
        [("token.key", 0o600), ("items.parquet", 0o644), ("answers/1.answers", 0o600), ("outlet/token.key", 0o600)]
    {
        let path = data.join(path);
        storage::create_private_directory(path.parent().unwrap()).unwrap();
        fs::write(&path, path.display().to_string()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    drop(EventLog::open(&data.join("outlet").join(LOG)).unwrap());
    data
}

/// Returns the content and permissions of all files below a directory.
fn contents(directory: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
    let mut found = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                found.insert(path.strip_prefix(directory).unwrap().to_owned(), (fs::read(&path).unwrap(), mode));
            }
        }
    }
    found
}

fn problem(result: Result<Summary, BackupError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_restored_directory_has_the_same_files_with_their_permissions() {
    let at = tempfile::tempdir().unwrap();
    let (data, backups, restored) = (data_directory(at.path()), at.path().join("a/backups"), at.path().join("new"));
    let expected = contents(&data);
    assert_eq!(expected.len(), 8, "four files, two logs of two files each");
    // Created again by the server, or not complete.
    for path in [
        "item_vectors.cache",
        "bundles/b/manifest.json",
        "retrain/gathered.json",
        "serving.json.new",
        "outlet/retrain/lock",
    ] {
        let path = data.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "left out").unwrap();
    }
    let made = create(&data, &backups, "1", None).unwrap();
    assert_eq!((made.path.as_path(), made.file_count, made.position), (backups.join("1").as_path(), 8, 0));
    assert_eq!(verify(&made.path).unwrap(), made);
    assert_eq!(restore(&made.path, &restored).unwrap().file_count, 8);
    assert_eq!(contents(&restored), expected);
    drop(EventLog::open(&restored.join(LOG)).unwrap());
    // A volume has this directory at its root.
    let volume = at.path().join("volume");
    fs::create_dir_all(volume.join(LOST_AND_FOUND)).unwrap();
    restore(&made.path, &volume).unwrap();
    assert_eq!(contents(&volume), expected);
}

#[test]
fn a_changed_backup_is_refused_and_leaves_nothing() {
    let at = tempfile::tempdir().unwrap();
    let (data, backups, restored) = (data_directory(at.path()), at.path().join("backups"), at.path().join("new"));
    let backup = create(&data, &backups, "1", None).unwrap().path;
    let file = backup.join("data/items.parquet");
    let whole = fs::read(&file).unwrap();
    let refused = |part: &str| {
        for found in [problem(verify(&backup)), problem(restore(&backup, &restored))] {
            assert!(found.contains("items.parquet") && found.contains(part), "{found}");
        }
        assert!(!restored.exists());
    };
    let mut changed = whole.clone();
    changed[3] ^= 1;
    fs::write(&file, changed).unwrap();
    refused("SHA-256");
    fs::write(&file, &whole[1..]).unwrap();
    refused("bytes instead of");
    fs::remove_file(&file).unwrap();
    refused("No such file");
    fs::write(&file, &whole).unwrap();
    assert!(verify(&backup).is_ok());
    // Also what the sums of the files do not have: permissions, the position.
    let manifest = backup.join(MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    let changed = text.replacen("\"position\": 0", "\"position\": 9", 1);
    assert_ne!(changed, text);
    fs::write(&manifest, changed).unwrap();
    for found in [problem(verify(&backup)), problem(restore(&backup, &restored))] {
        assert!(found.contains("backup.json is not as it was backed up: its SHA-256 differs"), "{found}");
    }
    assert!(!restored.exists());
    fs::write(&manifest, &text).unwrap();
    assert!(verify(&backup).is_ok());
    fs::remove_file(backup.join(MANIFEST_SUM)).unwrap();
    assert!(problem(verify(&backup)).contains("is no backup: backup.json.sha256"));
}

#[test]
fn a_manifest_cannot_lead_out_of_the_directory() {
    let at = tempfile::tempdir().unwrap();
    let (data, backups) = (data_directory(at.path()), at.path().join("backups"));
    let backup = create(&data, &backups, "1", None).unwrap().path;
    let manifest = backup.join(MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    for path in ["../items.parquet", "/etc/passwd", "", "a/../../b"] {
        let changed = text.replacen("\"items.parquet\"", &format!("\"{path}\""), 1);
        fs::write(&manifest, &changed).unwrap();
        let found = problem(verify(&backup));
        assert!(found.contains("backup.json is not as it was backed up: its SHA-256 differs"), "{found}");
        fs::write(backup.join(MANIFEST_SUM), manifest_sum(changed.as_bytes())).unwrap();
        let found = problem(restore(&backup, &at.path().join("new")));
        assert!(found.contains("is no backup") && found.contains(&format!("`{path}`")), "{found}");
    }
    fs::write(&manifest, text.replacen("\"format\": 1", "\"format\": 2", 1)).unwrap();
    let found = problem(verify(&backup));
    assert!(found.contains("version 2; this program reads version 1"), "{found}");
    fs::write(&manifest, "{}").unwrap();
    assert!(problem(verify(&backup)).contains("backup.json"));
    assert!(problem(verify(&data)).contains("is no backup"));
}

#[test]
fn nothing_is_overwritten_and_no_part_of_a_backup_stays() {
    let at = tempfile::tempdir().unwrap();
    let (data, backups) = (data_directory(at.path()), at.path().join("backups"));
    fs::create_dir_all(backups.join(".incomplete-0/data")).unwrap();
    let backup = create(&data, &backups, "1", None).unwrap().path;
    assert!(!backups.join(".incomplete-0").exists(), "an earlier interrupted backup is removed");
    let before = contents(&data);
    let found = problem(restore(&backup, &data));
    assert!(found.contains("--data") && found.contains("restore to a directory that is empty"), "{found}");
    assert_eq!(contents(&data), before);
    assert!(matches!(create(&data, &backups, "1", None), Err(BackupError::Exists { .. })));
    let found = problem(create(&data, &data.join("backups"), "1", None));
    assert!(found.contains("is in the data directory"), "{found}");
    assert!(!data.join("backups").exists());
    // A log that a repair must come before.
    let segment = data.join(LOG).join("00000000000000000001.log");
    let mut bytes = fs::read(&segment).unwrap();
    bytes.extend_from_slice(&[0xFF; 600]);
    bytes[9] ^= 1;
    fs::write(&segment, bytes).unwrap();
    assert!(problem(create(&data, &backups, "2", None)).contains("the event log"));
    assert_eq!(names(&backups).unwrap(), ["1"]);
    assert!(problem(create(at.path(), &backups, "3", None)).contains("no server has used"));
}

#[test]
fn the_oldest_backups_are_removed_and_nothing_else() {
    let at = tempfile::tempdir().unwrap();
    let (data, backups) = (data_directory(at.path()), at.path().join("backups"));
    for name in ["20260101T000000Z", "20260102T000000Z", "20260103T000000Z"] {
        assert!(create(&data, &backups, name, None).unwrap().removed.is_empty());
    }
    fs::create_dir_all(backups.join("20250101T000000Z-of-somebody")).unwrap();
    let made = create(&data, &backups, "20260104T000000Z", Some(2)).unwrap();
    assert_eq!(made.removed, ["20260101T000000Z", "20260102T000000Z"]);
    assert_eq!(names(&backups).unwrap(), ["20250101T000000Z-of-somebody", "20260103T000000Z", "20260104T000000Z"]);
    // A backup that fails removes none.
    fs::remove_dir_all(data.join(LOG)).unwrap();
    assert!(create(&data, &backups, "20260105T000000Z", Some(1)).is_err());
    assert_eq!(names(&backups).unwrap().len(), 3);
}

#[test]
fn a_backup_that_was_just_made_stays_whatever_the_other_names() {
    let at = tempfile::tempdir().unwrap();
    let (data, backups) = (data_directory(at.path()), at.path().join("backups"));
    // Names of another form, and one of a clock that was ahead.
    let others = ["20260101T000000", "before-the-sale", "é0260101T00000Z", "20260101t000000z"];
    for name in others.into_iter().chain(["20990101T000000Z"]) {
        create(&data, &backups, name, None).unwrap();
    }
    let made = create(&data, &backups, "20260102T000000Z", Some(2)).unwrap();
    assert!(made.removed.is_empty() && verify(&made.path).is_ok(), "{made:?}");
    let made = create(&data, &backups, "20260103T000000Z", Some(1)).unwrap();
    assert_eq!(made.removed, ["20260102T000000Z", "20990101T000000Z"]);
    assert!(verify(&made.path).is_ok());
    assert!(others.iter().all(|name| verify(&backups.join(name)).is_ok()));
}

#[test]
fn links_and_sockets_are_refused() {
    let at = tempfile::tempdir().unwrap();
    let (data, backups) = (data_directory(at.path()), at.path().join("backups"));
    let outside = at.path().join("outside");
    fs::write(&outside, "of somebody else").unwrap();
    for target in [&data, &outside, &at.path().join("missing")] {
        for link in [data.join("link"), data.join("outlet/link")] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            let found = problem(create(&data, &backups, "1", None));
            assert!(found.contains("link is a symbolic link"), "{found}");
            fs::remove_file(link).unwrap();
        }
    }
    let socket = std::os::unix::net::UnixListener::bind(data.join("socket")).unwrap();
    let found = problem(create(&data, &backups, "1", None));
    assert!(found.contains("socket is no regular file"), "{found}");
    drop(socket);
}
