//! What the name of a file says: its media type, and whether it changes with the content.

/// The media type of a file, by the ending of its name. Texts are UTF-8; what is not known is
/// bytes, which a browser saves and does not run.
pub fn media_type(name: &str) -> &'static str {
    let ending = name.rsplit('/').next().and_then(|last| last.rsplit_once('.'));
    let ending = ending.map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "xhtml" => "application/xhtml+xml",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" | "cjs" => "text/javascript; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "txt" | "text" | "log" => "text/plain; charset=utf-8",
        "md" | "markdown" => "text/markdown; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "ics" => "text/calendar; charset=utf-8",
        "vtt" => "text/vtt; charset=utf-8",
        "yaml" | "yml" => "application/yaml",
        "xml" | "xsl" => "application/xml",
        "rss" => "application/rss+xml",
        "atom" => "application/atom+xml",
        "wasm" => "application/wasm",
        "pdf" => "application/pdf",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "apng" => "image/apng",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "jxl" => "image/jxl",
        "bmp" => "image/bmp",
        "tif" | "tiff" => "image/tiff",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "otf" => "font/otf",
        "mp4" | "m4v" => "video/mp4",
        "webm" => "video/webm",
        "ogv" => "video/ogg",
        "mov" => "video/quicktime",
        "mp3" => "audio/mpeg",
        "m4a" => "audio/mp4",
        "aac" => "audio/aac",
        "ogg" | "oga" | "opus" => "audio/ogg",
        "flac" => "audio/flac",
        "wav" => "audio/wav",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "zst" => "application/zstd",
        "br" | "bin" => "application/octet-stream",
        "tar" => "application/x-tar",
        "7z" => "application/x-7z-compressed",
        _ => "application/octet-stream",
    }
}

/// Folders in which build tools put what they name by its content.
const BUILT: [&str; 8] =
    ["assets", "static", "_next", "_astro", "_nuxt", "immutable", "chunks", "_app"];

/// Whether the name of a file holds a digest of its content, as build tools write them:
/// `app.1f3a9b2c.js`, and in folders that are theirs also `index-BkX3d9aZ.js`.
///
/// It rather says no: what is kept for ever and changes nevertheless is worse than what is
/// asked for once more.
pub fn is_hashed(path: &str) -> bool {
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    let built = folders.split('/').any(|folder| BUILT.contains(&folder));
    let Some((stem, _)) = name.rsplit_once('.') else { return false };
    let has = |part: &str, what: fn(&u8) -> bool| part.as_bytes().iter().any(what);
    let hexadecimal = |part: &str| {
        (8..=64).contains(&part.len())
            && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            // Dates and words are no digests.
            && has(part, u8::is_ascii_digit)
            && has(part, u8::is_ascii_lowercase)
    };
    let mixed = |part: &str| {
        (8..=32).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && has(part, u8::is_ascii_digit)
            && has(part, u8::is_ascii_lowercase)
            && has(part, u8::is_ascii_uppercase)
    };
    let mut parts = stem.split(['.', '-']).skip(usize::from(!stem.starts_with(['.', '-'])));
    let whole = hexadecimal(stem) && built;
    whole || parts.any(|part| hexadecimal(part) || (built && mixed(part)))
}
