//! Server-side encryption: what requests ask for (SSE-S3, SSE-KMS, SSE-C), objects' keys, and a bucket's default.

use bytes::Bytes;
use karri_bulk::BulkStore;
use s3s::dto::{
    DeleteBucketEncryptionInput, DeleteBucketEncryptionOutput, GetBucketEncryptionInput, GetBucketEncryptionOutput,
    PutBucketEncryptionInput, PutBucketEncryptionOutput, ServerSideEncryption, ServerSideEncryptionByDefault,
    ServerSideEncryptionConfiguration, ServerSideEncryptionRule,
};

use crate::config::Doc;
use crate::core::{Access, Caller, Core, CoreRef};
use crate::crypt::Secret;
use crate::digest;
use crate::error::{Error, Kind, Result};
use crate::record::{Bucket, Holder, Sealed};

/// The key that SSE-KMS takes when none is named.
const DEFAULT_KEY: &str = "alias/aws/s3";

fn wrong(message: &'static str) -> Error {
    Error::new(Kind::InvalidArgument, message)
}

/// A customer's key (SSE-C), checked.
#[derive(Debug, Clone)]
pub struct CustomerKey {
    /// The key.
    pub secret: Secret,
    /// Its MD5 in Base64, as it is given back.
    pub md5: String,
}

impl CustomerKey {
    /// From the three headers, which come together or not at all.
    pub fn new(algorithm: Option<&str>, key: Option<&str>, md5: Option<&str>) -> Result<Option<Self>> {
        let (algorithm, key, md5) = match (algorithm, key, md5) {
            (None, None, None) => return Ok(None),
            (Some(algorithm), Some(key), Some(md5)) => (algorithm, key, md5),
            (None, ..) => {
                return Err(wrong(
                    "Requests specifying Server Side Encryption with Customer provided keys must provide a valid encryption algorithm.",
                ));
            }
            (_, None, _) => {
                return Err(wrong(
                    "Requests specifying Server Side Encryption with Customer provided keys must provide an appropriate secret key.",
                ));
            }
            (_, _, None) => {
                return Err(wrong(
                    "Requests specifying Server Side Encryption with Customer provided keys must provide the client calculated MD5 of the secret key.",
                ));
            }
        };
        if algorithm != "AES256" {
            return Err(Error::new(
                Kind::InvalidEncryptionAlgorithm,
                "The Encryption request you specified is not valid. Supported value: AES256.",
            ));
        }
        let bytes = digest::parse_base64(key).and_then(|b| <[u8; 32]>::try_from(b).ok());
        let secret = Secret(bytes.ok_or_else(|| wrong("The secret key was invalid for the specified algorithm."))?);
        if digest::parse_md5(md5) != Some(digest::md5(&secret.0)) {
            return Err(wrong("The calculated MD5 hash of the key did not match the hash that was provided."));
        }
        Ok(Some(Self { secret, md5: md5.trim().to_owned() }))
    }
}

/// How an upload asks to be encrypted.
#[derive(Debug, Clone)]
pub enum Asked {
    /// As the bucket has it.
    Default,
    /// With a key that is kept here.
    Kept(Holder),
    /// With the customer's.
    Customer(CustomerKey),
}

impl Asked {
    /// From an upload's headers.
    pub fn new(
        kind: Option<&ServerSideEncryption>,
        key_id: Option<&str>,
        customer: Option<CustomerKey>,
    ) -> Result<Self> {
        if let Some(customer) = customer {
            if kind.is_some() || key_id.is_some() {
                return Err(wrong(
                    "Server Side Encryption with Customer provided key is incompatible with the encryption method specified",
                ));
            }
            return Ok(Self::Customer(customer));
        }
        match (kind.map(ServerSideEncryption::as_str), key_id) {
            (None, None) => Ok(Self::Default),
            (kind, id) => holder(kind, id).map(Self::Kept),
        }
    }
}

/// Checks the id of a key of the key service: 1 to 2,048 visible ASCII characters.
///
/// # Errors
/// `InvalidArgument`.
pub fn check_key_id(id: &str) -> Result<()> {
    if id.is_empty() || id.len() > 2_048 || id.bytes().any(|b| !b.is_ascii_graphic()) {
        return Err(wrong("The key id is not valid."));
    }
    Ok(())
}

fn holder(kind: Option<&str>, key_id: Option<&str>) -> Result<Holder> {
    match (kind, key_id) {
        (Some(ServerSideEncryption::AES256), None) => Ok(Holder::Walrus),
        (Some(ServerSideEncryption::AWS_KMS), id) => {
            let id = id.filter(|i| !i.is_empty()).unwrap_or(DEFAULT_KEY);
            check_key_id(id)?;
            Ok(Holder::Service(id.to_owned()))
        }
        (Some(ServerSideEncryption::AES256) | None, Some(_)) => Err(wrong(
            "x-amz-server-side-encryption-aws-kms-key-id goes with x-amz-server-side-encryption: aws:kms only.",
        )),
        (Some(_), _) => Err(wrong("The encryption method specified is not supported")),
        (None, None) => Err(Kind::InvalidArgument.into()),
    }
}

impl Asked {
    /// The customer's key.
    pub fn customer(&self) -> Option<&CustomerKey> {
        if let Self::Customer(key) = self { Some(key) } else { None }
    }
}

/// An object's key, and how its record has it.
#[derive(Debug, Clone)]
pub struct Keyed {
    /// Wrapped, for the record.
    pub sealed: Sealed,
    /// In the clear, for this request.
    pub secret: Secret,
}

impl<B: BulkStore> Core<B> {
    /// A fresh key for an object of this bucket, if it is to be encrypted.
    pub async fn fresh_key(&self, bucket: &Bucket, asked: &Asked) -> Result<Option<Keyed>> {
        let (holder, outer) = match asked {
            Asked::Customer(key) => (Holder::Customer, Some(key.secret.clone())),
            Asked::Kept(holder) => (holder.clone(), self.holders_key(bucket, holder).await?),
            Asked::Default => match &bucket.encryption {
                None => return Ok(None),
                Some(holder) => (holder.clone(), self.holders_key(bucket, holder).await?),
            },
        };
        let Some(outer) = outer else { return Ok(None) };
        let secret = Secret::new();
        let wrapped = outer.wrap(&secret, holder.about());
        Ok(Some(Keyed { sealed: Sealed { holder, wrapped }, secret }))
    }

    /// The key of an object, or of an upload, for a request with this customer's key or none.
    pub async fn object_key(
        &self,
        bucket: &Bucket,
        sealed: Option<&Sealed>,
        customer: Option<&CustomerKey>,
    ) -> Result<Option<Secret>> {
        let refused = |message: &'static str| Error::new(Kind::InvalidRequest, message);
        let is_customers = sealed.is_some_and(|s| s.holder == Holder::Customer);
        if customer.is_some() && !is_customers {
            return Err(refused("The encryption parameters are not applicable to this object."));
        }
        let Some(sealed) = sealed else { return Ok(None) };
        let outer = match customer {
            Some(key) => Some(key.secret.clone()),
            None => self.holders_key(bucket, &sealed.holder).await?,
        };
        let outer = outer.ok_or_else(|| {
            refused(
                "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object.",
            )
        })?;
        match outer.unwrap(&sealed.wrapped, sealed.holder.about()) {
            Ok(secret) => Ok(Some(secret)),
            Err(e) if is_customers => {
                Err(refused("The provided encryption parameters did not match the ones used originally.").caused(e))
            }
            Err(e) => Err(Error::new(Kind::InternalError, "The object's key does not open.").caused(e)),
        }
    }
}

/// The four headers of an answer that say how an object is encrypted.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Shown {
    pub kind: Option<ServerSideEncryption>,
    pub key_id: Option<String>,
    pub customer_algorithm: Option<String>,
    pub customer_md5: Option<String>,
}

impl Shown {
    /// Of an object, to a request with this customer's key.
    pub fn of(sealed: Option<&Sealed>, customer: Option<&CustomerKey>) -> Self {
        let mut out = Self::default();
        match sealed.map(|s| &s.holder) {
            None => {}
            Some(Holder::Walrus) => out.kind = Some(ServerSideEncryption::from_static(ServerSideEncryption::AES256)),
            Some(Holder::Service(id)) => {
                out.kind = Some(ServerSideEncryption::from_static(ServerSideEncryption::AWS_KMS));
                out.key_id = Some(id.clone());
            }
            Some(Holder::Customer) => {
                out.customer_algorithm = Some("AES256".into());
                out.customer_md5 = customer.map(|c| c.md5.clone());
            }
        }
        out
    }
}

/// PutBucketEncryption.
pub async fn put_bucket_encryption<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: PutBucketEncryptionInput,
) -> Result<PutBucketEncryptionOutput> {
    let [rule] = &input.server_side_encryption_configuration.rules[..] else { return Err(Kind::MalformedXml.into()) };
    let default = rule.apply_server_side_encryption_by_default.as_ref().ok_or(Kind::MalformedXml)?;
    let encryption = holder(Some(default.sse_algorithm.as_str()), default.kms_master_key_id.as_deref())?;
    let owner = input.expected_bucket_owner.as_deref();
    let bucket_key = rule.bucket_key_enabled.unwrap_or(false).then(Bytes::new);
    core.change_bucket(caller, &input.bucket, owner, |bucket| {
        bucket.encryption = Some(encryption.clone());
        bucket.documents.set(Doc::BucketKey, bucket_key.clone());
        Ok(())
    })
    .await?;
    Ok(PutBucketEncryptionOutput {})
}

/// GetBucketEncryption.
pub async fn get_bucket_encryption<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: GetBucketEncryptionInput,
) -> Result<GetBucketEncryptionOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    let bucket = core.bucket(caller, &input.bucket, owner, Access::Read).await?;
    let (sse_algorithm, kms_master_key_id) = match bucket.value.encryption {
        None | Some(Holder::Customer) => return Err(Kind::NoEncryptionConfiguration.into()),
        Some(Holder::Walrus) => (ServerSideEncryption::AES256, None),
        Some(Holder::Service(id)) => (ServerSideEncryption::AWS_KMS, Some(id)),
    };
    let default = ServerSideEncryptionByDefault {
        kms_master_key_id,
        sse_algorithm: ServerSideEncryption::from_static(sse_algorithm),
    };
    let rule = ServerSideEncryptionRule {
        apply_server_side_encryption_by_default: Some(default),
        bucket_key_enabled: Some(bucket.value.documents.has(Doc::BucketKey)),
    };
    Ok(GetBucketEncryptionOutput {
        server_side_encryption_configuration: Some(ServerSideEncryptionConfiguration { rules: vec![rule] }),
    })
}

/// DeleteBucketEncryption.
pub async fn delete_bucket_encryption<B: BulkStore>(
    core: &CoreRef<B>,
    caller: &Caller,
    input: DeleteBucketEncryptionInput,
) -> Result<DeleteBucketEncryptionOutput> {
    let owner = input.expected_bucket_owner.as_deref();
    core.change_bucket(caller, &input.bucket, owner, |bucket| {
        bucket.encryption = None;
        bucket.documents.set(Doc::BucketKey, None);
        Ok(())
    })
    .await?;
    Ok(DeleteBucketEncryptionOutput {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn customers_keys() {
        let key = "pO3upElrwuEXSoFwCfnZPdSsmt/xWeFa0N9KgDijwVs=";
        let md5 = "DWygnHRtgiJ77HCm+1rvHw==";
        let check = |a: Option<&str>, k: Option<&str>, m: Option<&str>, want: Result<bool, Kind>| {
            let got = CustomerKey::new(a, k, m).map(|k| k.is_some()).map_err(|e| e.kind);
            assert_eq!(got, want, "{a:?} {k:?} {m:?}");
        };
        check(None, None, None, Ok(false));
        check(Some("AES256"), Some(key), Some(md5), Ok(true));
        check(None, Some(key), Some(md5), Err(Kind::InvalidArgument));
        check(Some("AES256"), None, Some(md5), Err(Kind::InvalidArgument));
        check(Some("AES256"), Some(key), None, Err(Kind::InvalidArgument));
        check(Some("AES256"), Some(key), Some("AAAAAAAAAAAAAAAAAAAAAA=="), Err(Kind::InvalidArgument));
        check(Some("AES256"), Some("c2hvcnQ="), Some(md5), Err(Kind::InvalidArgument));
        check(Some("AES512"), Some(key), Some(md5), Err(Kind::InvalidEncryptionAlgorithm));
    }

    #[test]
    fn what_uploads_ask_for() {
        let check = |kind: Option<&str>, id: Option<&str>, want: Result<Option<Holder>, Kind>| {
            let kind = kind.map(|k| ServerSideEncryption::from(k.to_owned()));
            let got = Asked::new(kind.as_ref(), id, None).map_err(|e| e.kind);
            let got = got.map(|a| if let Asked::Kept(holder) = a { Some(holder) } else { None });
            assert_eq!(got, want, "{kind:?} {id:?}");
        };
        check(None, None, Ok(None));
        check(Some("AES256"), None, Ok(Some(Holder::Walrus)));
        check(Some("aws:kms"), Some("k"), Ok(Some(Holder::Service("k".into()))));
        check(Some("aws:kms"), None, Ok(Some(Holder::Service(DEFAULT_KEY.into()))));
        check(None, Some("k"), Err(Kind::InvalidArgument));
        check(Some("AES256"), Some("k"), Err(Kind::InvalidArgument));
        check(Some("rot13"), None, Err(Kind::InvalidArgument));
    }
}
