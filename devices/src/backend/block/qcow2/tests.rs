use std::fs::File;

use imago::FormatCreateBuilder;
use vmm_sys_util::tempdir::TempDir;

mod refcounts;

use super::*;
use crate::backend::block::tests::{behaves_like_memory, noise, read};

const SIZE: u64 = 1 << 20;

fn create(path: &Path, backing: Option<(&str, &str)>) {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    let opened = StorageOpenOptions::new().filename(path).write(true);
    let storage = Storage::from_open_file(file, opened).unwrap();
    let mut builder = Qcow2::<Storage, Access>::create_builder(storage).size(SIZE);
    if let Some((name, format)) = backing {
        builder = builder.backing(name.into(), format.into());
    }
    builder.create().unwrap();
}

/// An image in `folder` that was written to and flushed: its path, it, and what is in it.
fn written(folder: &TempDir) -> (PathBuf, Qcow2Image, Vec<u8>) {
    let path = folder.as_path().join("image");
    create(&path, None);
    let image = Qcow2Image::open(&path, RawOptions::default()).unwrap();
    let model = behaves_like_memory(&image, Vec::new());
    image.flush().unwrap();
    (path, image, model)
}

fn refusal(path: &Path) -> String {
    refused(path, true)
}

fn refused(path: &Path, read_only: bool) -> String {
    let error = Qcow2Image::open(path, RawOptions { read_only, ..RawOptions::default() }).err().unwrap();
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

#[test]
fn images_with_a_backing_file_hold_what_is_written() {
    let folder = TempDir::new().unwrap();
    let base = folder.as_path().join("base");
    let content = noise(SIZE as usize / 2);
    std::fs::write(&base, &content).unwrap();
    let top = folder.as_path().join("top");
    create(&top, Some(("base", "raw")));
    let options = RawOptions { lock: true, ..RawOptions::default() };
    let model = {
        let image = Qcow2Image::open(&top, options).unwrap();
        assert_eq!(image.capacity(), SIZE);
        let model = behaves_like_memory(&image, content.clone());
        image.flush().unwrap();
        assert!(Qcow2Image::open(&top, options).is_err(), "in use");
        model
    };
    assert_eq!(std::fs::read(&base).unwrap(), content, "the backing file is as it was");
    let again = Qcow2Image::open(&top, RawOptions { read_only: true, ..options }).unwrap();
    assert_eq!(read(&again, 0, model.len()), model);
}

/// What was flushed is in the file, whatever the program's caches held.
#[test]
fn what_is_flushed_is_there_without_the_program_s_end() {
    let folder = TempDir::new().unwrap();
    let (path, _image, model) = written(&folder);
    let copy = folder.as_path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    let copied = Qcow2Image::open(&copy, RawOptions { read_only: true, ..RawOptions::default() }).unwrap();
    assert_eq!(read(&copied, 0, model.len()), model);
}

#[test]
fn an_image_that_was_cut_short_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder).0;
    layout::check(&File::open(&path).unwrap(), true).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for len in [whole.len() / 2, 0x1_0000, 100, 10, 0] {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(refusal(&path).contains("not a usable qcow2 image: it is"), "{len}: {}", refusal(&path));
    }
}

#[test]
fn backing_files_that_cannot_be() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.as_path().join(name);
    create(&at("self"), Some(("self", "qcow2")));
    assert!(refusal(&at("self")).contains("its backing files lead back to it"));
    create(&at("a"), Some(("b", "qcow2")));
    create(&at("b"), Some(("a", "qcow2")));
    assert!(refusal(&at("a")).contains("lead back to it"));
    create(&at("orphan"), Some(("nobody", "raw")));
    assert!(refusal(&at("orphan")).contains("nobody: cannot be opened"));
    create(&at("remote"), Some(("nbd://host", "raw")));
    assert!(refusal(&at("remote")).contains("not built yet"));
    create(&at("odd"), Some(("a", "vmdk")));
    assert!(refusal(&at("odd")).contains("not built yet"));
}

/// Any bytes end in an image or a refusal, and reading and writing an image in data or an error.
#[test]
fn malformed_images_never_panic() {
    let folder = TempDir::new().unwrap();
    let path = written(&folder).0;
    let whole = std::fs::read(&path).unwrap();
    let mut random = crate::testing::Random::new(5);
    let mut opened = [0; 2];
    for round in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random.below(3) {
            // The header, or a table somewhere.
            let at = if random.below(2) == 0 { random.below(112) } else { random.below(whole.len() as u64) };
            bytes[usize::try_from(at).unwrap()] = random.next() as u8;
        }
        std::fs::write(&path, &bytes).unwrap();
        let read_only = round % 2 == 0;
        if let Ok(image) = Qcow2Image::open(&path, RawOptions { read_only, ..RawOptions::default() }) {
            opened[usize::from(read_only)] += 1;
            let mut copy = vec![0; 4096];
            for offset in (0..image.capacity().min(SIZE)).step_by(0x1_0000) {
                let _ = image.read(offset, &[VolatileSlice::from(&mut copy[..])]);
                if !read_only {
                    let _ = image.write(offset, &[VolatileSlice::from(&mut copy[..])]);
                    let _ = image.write_zeroes(offset + 8192, 4096, true);
                }
            }
            let _ = image.flush();
        }
    }
    assert!(opened.iter().all(|&count| count > 25), "only {opened:?} of them were opened");
}
